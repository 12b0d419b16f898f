"""The proof of a reordering: both networks in float64 on the same input give the same, to what rounding leaves."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from hetconv_cli.conversion.copying import full_copy
from hetconv_cli.conversion.reorder.flow import tensors_of
from hetconv_cli.conversion.trace import forward_pass
from hetconv_cli.errors import HetconvError

TOLERANCE = 1e-9  # of the output's largest value; sums in another order differ by 1e-13 in a deep network


def prove(original: nn.Module, reordered: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The largest difference of the outputs, relative to the original's largest value. Both networks stay as they are.

    Raises:
        HetconvError: it passes `TOLERANCE`, or there is nothing to compare: the network does not run in float64, or
            gives NaN or infinity.
    """
    wanted, got = (_outputs(model, inputs) for model in (original, reordered))
    if not all(bool(tensor.isfinite().all()) for tensor in wanted):
        raise HetconvError("reorder: the network gives NaN or infinity on the example, so nothing can be proven")
    error = max((_difference(*pair) for pair in zip(wanted, got, strict=False)), default=0.0)
    if len(wanted) != len(got) or not error < TOLERANCE:
        raise HetconvError(
            f"reorder: the reordered network computes something else (relative difference {error:.1e}), so it was given"
            " up; convert without reorder, and please report the network"
        )
    return error


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    copy = full_copy(model).double()
    try:
        with forward_pass(copy), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tensors_of(copy(*_pytree.tree_map_only(Tensor, _in_double, inputs)))
    except HetconvError as error:
        raise HetconvError(f"reorder: cannot be proven, the network does not run in float64: {error}") from error


def _in_double(tensor: Tensor) -> Tensor:
    return (tensor.double() if tensor.is_floating_point() else tensor).clone()


def _difference(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    scale = float(wanted.abs().max())
    difference = float((wanted.double() - got.double()).abs().max())
    return difference / scale if scale else difference
