"""Exports a model as one ONNX file that is proven to compute the same, or leaves nothing behind."""

import copy
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from hetconv_cli.conversion.copying import copy_structure
from hetconv_cli.errors import ArgumentError, HetconvError, NotProvenError
from hetconv_cli.export.conditioning import condition
from hetconv_cli.export.exporters import EXAMPLE_BATCH, Exporter, export_graph, exporter_for
from hetconv_cli.export.fold import FoldCount, fold_batchnorms
from hetconv_cli.export.inputs import Inputs, inputs_like
from hetconv_cli.export.lowering import with_two_convolutions
from hetconv_cli.export.outputs import named_outputs
from hetconv_cli.export.proof import Evidence, Tolerance, check_file, prove
from hetconv_cli.export.residuals import add_residuals_first
from hetconv_cli.files import check_target
from hetconv_cli.models.device import DeviceName, check_device
from hetconv_cli.models.one_line import one_line

DEFAULT_OPSET = 18
PROOF_BATCH = 3  # of a dynamic axis; another than the example's
ONE_FILE_BYTES = 2**31 - 2**20  # protobuf's 2 GiB, less room for the graph itself

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what is known of it.

    Attributes:
        output: Path of the file.
        opset: Version of the standard operators.
        bytes: Size on disk (with the data file of networks over 2 GiB).
        dynamic_batch: Whether the first axis of the inputs is symbolic ("batch").
        exporter: "dynamo", or "torchscript" for models that take lists of images.
        bn_folded: BatchNormalization nodes folded after the exporter, which folds single Conv ones by itself.
        bn_left: BatchNormalization nodes in the file.
        nodes: Operators by count, the most frequent first.
        verified: Whether the file was proven to compute what the model computes.
        max_abs_diff: Largest difference between ONNX Runtime and torch; None if not verified.
        max_rel_diff: Largest difference relative to the output's scale; None if not verified.
        reaction: How much the outputs move, relative to their scale, when the input does; None if not verified.
        tolerance: {"atol": ..., "rtol": ...}.
        proof_batch: Batch size of the proof.
        example_batch: Batch size of the export.
        notes: What a reader should know besides, a sentence each.
        device: Where torch's side of the proof ran.
    """

    output: str
    opset: int
    bytes: int
    dynamic_batch: bool
    exporter: Exporter
    bn_folded: int
    bn_left: int
    nodes: dict[str, int]
    verified: bool
    max_abs_diff: float | None
    max_rel_diff: float | None
    reaction: float | None
    tolerance: dict[str, float]
    proof_batch: int
    example_batch: int
    notes: tuple[str, ...]
    device: DeviceName = "cpu"


@dataclass(frozen=True)
class _Plan:
    """How files are made from models of one structure; the model and its conditioned twin share it."""

    inputs: Inputs
    output_names: list[str]
    opset: int
    dynamic_batch: bool
    example_batch: int
    proof_batch: int
    tolerance: Tolerance
    device: DeviceName
    progress: Progress


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    atol: float = 0.0,
    rtol: float = 1e-4,
    verify: bool = True,
    fresh: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write `model`, in eval mode, as an ONNX file of standard operators, and prove that it computes the same.

    HetConv2d becomes Conv (grouped K x K) + Conv (1 x 1) + Add, and a BatchNorm after it goes into both. The proof
    runs the file in ONNX Runtime on the CPU against `model` in torch on random input. The model is not changed.

    Args:
        model: Any module; on any device.
        path: The file. It appears when it is complete and proven, never before.
        example: What the model is called with: a tensor, a tuple of tensors, a list of [C, H, W] images, or an
            ExampleSpec. Batch first.
        opset: Version of the standard operators, 18 if None.
        dynamic_batch: Make the first axis of every input symbolic. Lists of images are always fixed in number and size.
        atol: Absolute part of the tolerance, in the output's units.
        rtol: Relative part: fraction of the output's largest absolute value.
        verify: Whether to prove. Without it the file is written as the exporter made it.
        fresh: Whether the weights are random. If outputs then hardly react to the input, a twin of the network with
            BatchNorm statistics and without zero matrices is exported the same way, and proven too.
        device: "cpu" or "cuda": where torch's side of the proof runs, in full float32 precision. ONNX Runtime and the
            export run on the CPU.
        overwrite: Whether an existing file may be replaced.
        progress: Called with a short phrase as each step begins.

    Raises:
        ArgumentError: an argument that does not fit; a device that is not here; a file that exists; a folder that
            cannot be written to.
        HetconvError: the exporter failed, could not keep the batch axis dynamic, or needs non-standard operators.
        NotProvenError: the file differs from the model by more than the tolerance, cannot be run, or its outputs do
            not react to the input, so that agreement proves nothing.
    """
    target = Path(path)
    place = check_device(device)
    tolerance = _tolerance(atol, rtol)
    opset = _opset(opset)
    check_target(target, overwrite)
    check_target(_data_file(target), overwrite)
    inputs = inputs_like(example, model)
    dynamic = dynamic_batch and not inputs.is_images
    _check_batch(inputs, dynamic)
    with _folder_beside(target) as folder:
        reference = _on_cpu(model)
        example_batch = EXAMPLE_BATCH if dynamic else inputs.batch
        plan = _Plan(
            inputs=inputs,
            output_names=_output_names(reference, inputs, example_batch),
            opset=opset,
            dynamic_batch=dynamic,
            example_batch=example_batch,
            proof_batch=PROOF_BATCH if dynamic else inputs.batch,
            tolerance=tolerance,
            device=place,
            progress=progress or (lambda _: None),
        )
        file = Path(folder, target.name)
        count, nodes = _make(reference, file, plan)
        evidence, notes = _verify(reference, file, nodes, plan, fresh=fresh) if verify else (None, ())
        if dynamic_batch and not dynamic:
            notes = ("the number and size of the images are fixed: the model takes a list of them", *notes)
        size = _put_in_place(file, target)
    return ExportReport(
        output=str(target),
        opset=opset,
        bytes=size,
        dynamic_batch=dynamic,
        exporter=exporter_for(inputs),
        bn_folded=count.folded,
        bn_left=count.left,
        nodes=dict(nodes.most_common()),
        verified=evidence is not None,
        max_abs_diff=evidence.max_abs_diff if evidence else None,
        max_rel_diff=evidence.max_rel_diff if evidence else None,
        reaction=evidence.reaction if evidence else None,
        tolerance={"atol": atol, "rtol": rtol},
        proof_batch=plan.proof_batch,
        example_batch=plan.example_batch,
        notes=notes,
        device=place,
    )


def _make(model: nn.Module, file: Path, plan: _Plan) -> tuple[FoldCount, Counter[str]]:
    """Writes the file of `model`, and counts what was folded and which operators it holds."""
    plan.progress("exporting")
    graph = export_graph(
        with_two_convolutions(model),
        plan.inputs,
        plan.output_names,
        batch=plan.example_batch,
        opset=plan.opset,
        dynamic_batch=plan.dynamic_batch,
    )
    plan.progress("folding BatchNorm")
    count = fold_batchnorms(graph)
    add_residuals_first(graph.graph)
    _save(graph, file)
    return count, Counter(node.op_type for node in graph.graph.node)


def _verify(
    reference: nn.Module, file: Path, nodes: Counter[str], plan: _Plan, *, fresh: bool
) -> tuple[Evidence, tuple[str, ...]]:
    """Proof of `file`, through a conditioned twin where a fresh network's own outputs say nothing; and notes on it."""
    plan.progress("proving")
    check_file(file)
    own = prove(reference, file, plan.inputs, plan.proof_batch, plan.tolerance, plan.device)
    if own.silent is None:
        return own, ()
    if not fresh:
        raise _not_proven(own.silent)
    evidence = _verify_twin(reference, file.parent / "twin" / file.name, nodes, plan, own.silent)
    note = (
        f"proven on a twin with BatchNorm statistics of one batch and noise in zero matrices, exported the same way: "
        f"with these random weights {own.silent}; the file itself agrees to {own.max_rel_diff:.1e} of the scale"
    )
    return evidence, (note,)


def _verify_twin(model: nn.Module, file: Path, nodes: Counter[str], plan: _Plan, silent: str) -> Evidence:
    """Proof by a conditioned twin of `model`, whose own outputs are `silent`; its graph must have the same `nodes`."""
    plan.progress("proving on a twin that reacts to its input")
    twin = condition(model, plan.inputs.make(max(2, plan.proof_batch), seed=3))
    file.parent.mkdir()
    _, twin_nodes = _make(twin, file, plan)
    if twin_nodes != nodes:
        raise _not_proven(f"{silent}; the graph of a network that does react has other operators")
    try:
        evidence = prove(twin, file, plan.inputs, plan.proof_batch, plan.tolerance, plan.device)
    except NotProvenError as error:
        # A random detector chooses among thousands of nearly equal scores, and rounding decides which boxes it returns.
        hint = "; random detectors decide between near ties: prove the trained one" if plan.inputs.is_images else ""
        raise NotProvenError(
            f"not proven: with random weights {silent}; on a twin of the network that reacts: {error}{hint}"
        ) from error
    if evidence.silent is not None:
        raise _not_proven(f"{evidence.silent}, even with BatchNorm statistics and without zero matrices")
    return evidence


def _not_proven(why: str) -> NotProvenError:
    return NotProvenError(f"not proven: outputs do not react to the input ({why}); --no-verify keeps the file")


def _tolerance(atol: float, rtol: float) -> Tolerance:
    for name, value in {"atol": atol, "rtol": rtol}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ArgumentError(f"{name} must be a number >= 0, got {value}")
    return Tolerance(atol, rtol)


def _opset(opset: int | None) -> int:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not (type(opset) is int and 1 <= opset <= newest):
        raise ArgumentError(f"opset must be an integer from 1 to {newest}, got {opset!r}")
    return DEFAULT_OPSET if opset is None else opset


def _check_batch(inputs: Inputs, dynamic: bool) -> None:
    sizes = {shape[0] for shape in inputs.spec.shapes}
    if dynamic and len(sizes) > 1:
        got = inputs.spec.describe()
        raise ArgumentError(f"a dynamic batch axis needs inputs of one batch size, got {got}: pass --static-batch")


def _folder_beside(target: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder on the same disk that goes away with all it holds."""
    return tempfile.TemporaryDirectory(prefix=".hetconv-", dir=target.parent)


def _on_cpu(model: nn.Module) -> nn.Module:
    """A copy to run and to export: on the CPU, where ONNX Runtime is, and in eval mode."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ArgumentError("the model has no weights (it is on the meta device): build it on the CPU")
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    try:
        return (copy_structure(model) if on_cpu else copy.deepcopy(model).cpu()).eval()
    except RuntimeError as error:  # torch says which tensor, for instance one kept from a forward with gradients
        raise HetconvError(f"the model cannot be copied: {one_line(error)}") from error


def _output_names(model: nn.Module, inputs: Inputs, batch: int) -> list[str]:
    try:
        with torch.no_grad():
            output = model(*inputs.make(batch, seed=0))
    except Exception as error:  # users' code raises whatever it likes
        wanted = inputs.spec.describe()
        raise HetconvError(f"the model does not run on input {wanted} (batch {batch}): {one_line(error)}") from error
    return list(named_outputs(output, inputs.names))


def _data_file(file: Path) -> Path:
    """Where the weights go that do not fit into `file`."""
    return file.with_name(f"{file.name}.data")


def _save(graph: onnx.ModelProto, file: Path) -> None:
    """One file where protobuf can hold it, otherwise the weights in `_data_file`."""
    if sum(len(tensor.raw_data) for tensor in graph.graph.initializer) <= ONE_FILE_BYTES:
        onnx.save(graph, str(file))
    else:
        onnx.save(graph, str(file), save_as_external_data=True, location=_data_file(file).name)


def _put_in_place(file: Path, target: Path) -> int:
    """Moves the finished file, and the data file if there is one, over `target`; returns their bytes."""
    size = 0
    for made in (_data_file(file), file):  # the data first: a file without its data would be broken
        if made.exists():
            size += made.stat().st_size
            os.replace(made, target.with_name(made.name))
    return size
