"""Whether an ONNX file computes what a model computes, and whether the comparison says anything at all.

Tolerance: for each output max|a - b| <= atol + rtol max|a|, where a is torch's and b ONNX Runtime's.

Reaction: the largest change of an output between two different random inputs, relative to its scale max|a|. Where
an output hardly changes, nearly all of it is constants (biases) that any file with the right last layer repeats, and an
error in the layers before it disappears under them. So the reaction must be at least `LEAST_REACTION`, and at
least ten times the tolerance: then a part of the network that makes a tenth of what moves cannot be wrong altogether
unseen. Outputs of integers (classes, counts) and outputs that no input reaches (anchors) need not move.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from hetconv_cli.errors import NotProvenError
from hetconv_cli.export.detections import Arrays, in_order_of
from hetconv_cli.export.graphs import names_read_by
from hetconv_cli.export.inputs import Inputs, flatten_arguments
from hetconv_cli.export.outputs import named_outputs
from hetconv_cli.models.device import DeviceName
from hetconv_cli.models.one_line import one_line

LEAST_REACTION = 1e-3
REACTION_PER_TOLERANCE = 10
FIRST_SEED, SECOND_SEED = 1, 2  # 0 is the example's


@dataclass(frozen=True)
class Tolerance:
    """How far ONNX Runtime may be from torch: `atol` plus `rtol` times the largest absolute value of the output."""

    atol: float
    rtol: float

    def limit(self, scale: float) -> float:
        """The largest difference allowed for an output of this scale."""
        return self.atol + self.rtol * scale

    def least_reaction(self, scale: float) -> float:
        """The least reaction, relative to `scale`, at which agreement means something."""
        return max(LEAST_REACTION, REACTION_PER_TOLERANCE * self.limit(scale) / scale)


@dataclass(frozen=True)
class Evidence:
    """What a comparison found; the tolerance was kept, or `compare` would have raised.

    Attributes:
        max_abs_diff: Largest |a - b| of all outputs.
        max_rel_diff: Largest max|a - b| / max|a| of all outputs.
        reaction: Smallest max|a(x1) - a(x2)| / max|a(x1)| of the floating-point outputs that the inputs reach.
        silent: Why the outputs prove nothing; None if they prove it.
    """

    max_abs_diff: float
    max_rel_diff: float
    reaction: float
    silent: str | None


def check_file(path: Path) -> None:
    """Runs onnx.checker, with shape inference, on the file and the data beside it.

    Raises:
        NotProvenError: it objects.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NotProvenError(f"onnx.checker refuses the file: {one_line(error)}; --no-verify keeps it") from error


def prove(
    model: nn.Module, path: Path, inputs: Inputs, batch: int, tolerance: Tolerance, device: DeviceName = "cpu"
) -> Evidence:
    """Compares the file with `model` (on the CPU, in eval mode) on random inputs of `batch` samples.

    On another `device` a copy of the model runs there, with products in full precision; ONNX Runtime runs on the CPU.

    Raises:
        NotProvenError: they differ by more than the tolerance, in shape or in names, an output is not finite, or ONNX
            Runtime cannot run the file. Not for outputs that do not react: that is in the result.
    """
    arguments = inputs.make(batch, FIRST_SEED)
    there = model if device == "cpu" else copy.deepcopy(model).to(device)
    with torch.no_grad(), _full_precision():
        expected = _in_torch(there, arguments, inputs, device)
        other = _in_torch(there, inputs.make(batch, SECOND_SEED), inputs, device)
    got = _in_runtime(path, dict(zip(inputs.names, flatten_arguments(arguments), strict=True)))
    if list(got) != list(expected):
        raise NotProvenError(f"not proven: torch returns {', '.join(expected)}; the file {', '.join(got)}")
    if inputs.is_images:
        got = in_order_of(expected, got)
    differences = [_difference(name, expected[name], got[name], tolerance) for name in expected]
    reached = _reached_outputs(path)
    reaction, silent = _reaction(
        {name: (value, other.get(name)) for name, value in expected.items() if name in reached}, tolerance
    )
    return Evidence(
        max_abs_diff=max(absolute for absolute, _ in differences),
        max_rel_diff=max(relative for _, relative in differences),
        reaction=reaction,
        silent=silent,
    )


def _in_torch(model: nn.Module, arguments: tuple[Any, ...], inputs: Inputs, device: DeviceName) -> dict[str, Tensor]:
    """The model's outputs, on the CPU; it runs on `device`."""
    arguments = _pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments)
    return {name: value.cpu() for name, value in named_outputs(model(*arguments), inputs.names).items()}


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products on a GPU as on the CPU: TF32, cuDNN's default, is farther off than the tolerance."""
    places: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _in_runtime(path: Path, feeds: Mapping[str, Tensor]) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its warnings are about graphs that users did not write
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        values = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    except Exception as error:  # its exceptions have no common base; numpy has no bfloat16
        raise NotProvenError(
            f"not proven: ONNX Runtime on CPU cannot run the file: {one_line(error)}; --no-verify keeps it"
        ) from error
    return {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}


def _difference(name: str, expected: Tensor, got: npt.NDArray[np.generic], tolerance: Tolerance) -> tuple[float, float]:
    """max|a - b| of one output, and that relative to max|a|."""
    if list(expected.shape) != list(got.shape):
        shapes = f"{list(expected.shape)} in torch, {list(got.shape)} in ONNX Runtime"
        raise NotProvenError(f"not proven: output {name!r} is {shapes}; --no-verify keeps the file")
    if expected.numel() == 0:
        return 0.0, 0.0
    truth, found = expected.double(), torch.from_numpy(got).double()
    if not (truth.isfinite().all() and found.isfinite().all()):
        raise NotProvenError(f"not proven: output {name!r} is not finite on random input; --no-verify keeps the file")
    scale, difference = truth.abs().max().item(), (truth - found).abs().max().item()
    limit = tolerance.limit(scale)
    if difference > limit:
        raise NotProvenError(
            f"not equal: output {name!r} differs from torch by {difference:.3g}, limit {limit:.3g}"
            f" (output scale {scale:.3g}); --no-verify keeps the file"
        )
    return difference, difference / scale if scale else 0.0


def _reaction(pairs: Mapping[str, tuple[Tensor, Tensor | None]], tolerance: Tolerance) -> tuple[float, str | None]:
    """The smallest reaction, and why it proves nothing, if so."""
    least, silent = float("inf"), None
    for name, (first, second) in pairs.items():
        if not first.is_floating_point() or first.numel() == 0:
            continue
        scale = first.double().abs().max().item()
        reaction = _moved(first, second) / scale if scale else 0.0
        least = min(least, reaction)
        needed = tolerance.least_reaction(scale) if scale else LEAST_REACTION
        if reaction < needed and silent is None:
            silent = f"output {name!r} moves by {reaction:.1e} of its scale when the input does, {needed:.1e} needed"
    if least == float("inf"):
        return 0.0, "no output is a non-empty floating-point tensor that depends on the input"
    return least, silent


def _moved(first: Tensor, second: Tensor | None) -> float:
    """The largest change; a change of shape (other boxes found) moves an output by all of its scale."""
    if second is None or first.shape != second.shape:
        return first.double().abs().max().item()
    return (first.double() - second.double()).abs().max().item()


def _reached_outputs(path: Path) -> set[str]:
    """Names of the file's outputs that depend on an input."""
    graph = onnx.load(str(path), load_external_data=False).graph
    reached = {value.name for value in graph.input}
    for node in graph.node:  # sorted so that makers stand before readers
        if not reached.isdisjoint(names_read_by(node)):
            reached.update(node.output)
    return reached & {value.name for value in graph.output}
