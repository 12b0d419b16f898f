"""torch's two ONNX exporters, quiet, and held to what we promise of a graph."""

import contextlib
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx_ir.passes import PassError
from torch import nn

from hetconv_cli.errors import HetconvError
from hetconv_cli.export.cleanup import join_identities, strip_metadata
from hetconv_cli.export.graphs import all_nodes
from hetconv_cli.export.inputs import Inputs
from hetconv_cli.models.one_line import one_line

BATCH_AXIS = "batch"
EXAMPLE_BATCH = 2  # of a dynamic axis: torch.export takes 0 and 1 for constants

BATCH_COMPLAINTS = ("specialized", "onstraints violated", "user-specified ranges")  # torch.export's words

Exporter = Literal["dynamo", "torchscript"]


def exporter_for(inputs: Inputs) -> Exporter:
    """Lists of images go through TorchScript: torch.export cannot follow detection models (pytorch#146152)."""
    return "torchscript" if inputs.is_images else "dynamo"


def export_graph(
    model: nn.Module, inputs: Inputs, output_names: list[str], *, batch: int, opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    """The ONNX graph of `model`, which must be lowered, on the CPU and in eval mode.

    Args:
        model: What to export.
        inputs: What it is called with.
        output_names: As `named_outputs` names them.
        batch: Batch size of the example that is traced.
        opset: Version of the standard operators.
        dynamic_batch: Whether the first axis of every input is symbolic.

    Raises:
        HetconvError: the exporter failed, fixed the batch axis, used another opset or operators outside the standard.
    """
    arguments = inputs.make(batch, seed=0)
    names: dict[str, Any] = {"input_names": inputs.names, "output_names": output_names, "opset_version": opset}
    try:
        with quiet(), torch.no_grad():
            if exporter_for(inputs) == "torchscript":
                graph = _torchscript(model, arguments, names)
            else:
                graph = _dynamo(model, arguments, names, dynamic_batch)
    except Exception as error:  # the exporters raise whatever they meet
        raise HetconvError(_failure(error, dynamic_batch)) from error
    _check_operators(graph, opset)
    strip_metadata(graph)
    join_identities(graph.graph)
    if dynamic_batch:
        _name_batch_axis(graph.graph)
    return graph


def _dynamo(model: nn.Module, arguments: tuple[Any, ...], names: dict[str, Any], dynamic: bool) -> onnx.ModelProto:
    axes: Any = {0: torch.export.Dim.DYNAMIC} if dynamic else None
    # With guards instead of asserts torch.export gives up on what holds for every batch but it cannot solve, such
    # as raft's chunk(2); the proof runs another batch size, so an axis that is dynamic in name only is found out.
    traced = torch.export.export(
        model,
        arguments,
        dynamic_shapes=_shapes_by_parameter(model, [axes for _ in arguments]),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    try:
        return _written(traced, names, optimize=True)
    except PassError:  # the optimizer fails on raft's splits of a dynamic axis; the graph works without it
        return _written(traced, names, optimize=False)


def _written(traced: torch.export.ExportedProgram, names: dict[str, Any], *, optimize: bool) -> onnx.ModelProto:
    program = torch.onnx.export(traced, (), dynamo=True, external_data=False, verbose=False, optimize=optimize, **names)
    assert program is not None  # dynamo=True always returns one
    graph: onnx.ModelProto = program.model_proto
    return graph


def _torchscript(model: nn.Module, arguments: tuple[Any, ...], names: dict[str, Any]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "traced.onnx")
        torch.onnx.export(model, arguments, str(path), dynamo=False, verbose=False, **names)
        return onnx.load(str(path))


def _shapes_by_parameter(model: nn.Module, shapes: list[Any]) -> Any:
    """`dynamic_shapes` for positional inputs; those that fall into `*args` make a tuple of their own."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    before = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:before], tuple(shapes[before:])) if len(shapes) > before else tuple(shapes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' warnings, log lines and prints from the user, who cannot act on them."""
    disabled = logging.root.manager.disable
    nothing = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _failure(error: BaseException, dynamic_batch: bool) -> str:
    while error.__cause__ is not None:  # the exporters wrap the reason in pages about themselves
        error = error.__cause__
    text = str(error)
    if dynamic_batch and any(word in text for word in BATCH_COMPLAINTS):
        return _batch_fixed("the model's code works for one batch size only")
    hint = "; --static-batch may help" if dynamic_batch else ""
    return f"torch's ONNX exporter failed: {type(error).__name__}: {one_line(error)}{hint}"


def _batch_fixed(what: str) -> str:
    return f"the batch axis is not dynamic ({what}): pass --static-batch (dynamic_batch=False) to export with it fixed"


def _name_batch_axis(graph: onnx.GraphProto) -> None:
    """Calls the first axis of every input "batch", wherever its symbol stands.

    Raises:
        HetconvError: an input's first axis is not symbolic.
    """
    symbols = []
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if not dims or not dims[0].dim_param:
            size = dims[0].dim_value if dims else "no axis"
            raise HetconvError(_batch_fixed(f"the exporter fixed that of {value.name!r} to {size}"))
        symbols.append(re.escape(dims[0].dim_param))
    symbol = re.compile(rf"\b({'|'.join(symbols)})\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(BATCH_AXIS, dim.dim_param)


def _check_operators(graph: onnx.ModelProto, opset: int) -> None:
    """Raises unless every operator is of the standard domain at `opset`; unused imports of others are removed."""
    foreign = sorted(
        {f"{node.domain}::{node.op_type}" for node in all_nodes(graph.graph) if not _standard(node.domain)}
    )
    if foreign or graph.functions:
        found = foreign or [function.name for function in graph.functions]
        raise HetconvError(f"the graph needs operators outside the ONNX standard: {', '.join(found)}")
    versions = [entry.version for entry in graph.opset_import if _standard(entry.domain)]
    if versions != [opset]:
        raise HetconvError(
            f"asked for opset {opset}, but the exporter writes {versions}: pass --opset with that number"
        )
    del graph.opset_import[:]
    graph.opset_import.append(onnx.helper.make_opsetid("", opset))


def _standard(domain: str) -> bool:
    return domain in ("", "ai.onnx")
