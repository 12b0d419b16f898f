"""What a layer takes on this device, as it is and with each part, in the form in which torch runs it fastest."""

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hetconv_cli.conversion.calibration.part_errors import divisors
from hetconv_cli.conversion.rewrite import build_layer
from hetconv_cli.conversion.trace import Trace
from hetconv_cli.conversion.transfer import transfer_weights
from hetconv_cli.layers import FusedHetConv2d, HetConv2d
from hetconv_cli.plan import Change, LayerPlan

_LEAST_SECONDS = 0.02  # of measuring one layer with one part


@torch.no_grad()
def time_layers(
    model: nn.Module,
    layers: tuple[LayerPlan, ...],
    seen: Trace,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, dict[int | None, int]]:
    """For each layer, nanoseconds (median) of all its calls in one forward pass: as it is (None), and with each part.

    On images in channels_last, with weights prepared once (`hc.fuse`). Layers of one geometry are timed once.
    """
    known: dict[object, int] = {}
    times: dict[str, dict[int | None, int]] = {}
    for done, layer in enumerate(layers):
        progress("timing each layer with each part", done, len(layers))
        conv = model.get_submodule(layer.name)
        assert isinstance(conv, nn.Conv2d)
        assert layer.change is not None
        shapes = Counter(call.inputs[0] for call in seen.of(layer.name))
        times[layer.name] = {}
        for p in (None, *divisors(layer.geometry.in_channels)):
            total = 0
            for shape, calls in shapes.items():
                key = (layer.geometry, layer.change.arrangement, p, shape)
                if key not in known:
                    known[key] = _nanoseconds(_as_with(conv, layer, p), shape, conv.weight)
                total += calls * known[key]
            times[layer.name][p] = total
    return times


def _as_with(conv: nn.Conv2d, layer: LayerPlan, p: int | None) -> nn.Module:
    if p is None or layer.change is None:
        return copy.deepcopy(conv).to(memory_format=torch.channels_last)
    new = build_layer(conv, Change("hetconv", p=p, arrangement=layer.change.arrangement))
    assert isinstance(new, HetConv2d)
    transfer_weights(new, conv, "center")
    return FusedHetConv2d(new)


def _nanoseconds(module: nn.Module, shape: tuple[int, ...], like: torch.Tensor) -> int:
    input = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    input = input.contiguous(memory_format=torch.channels_last)
    timer = _timer()("module(input)", globals={"module": module, "input": input}, num_threads=torch.get_num_threads())
    seconds: float = timer.blocked_autorange(min_run_time=_LEAST_SECONDS).median
    return max(1, round(seconds * 1e9))


def _timer() -> Any:
    """The timer of torch. On import it logs that there is no CUDA, where there is none: not news to anybody."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils.benchmark import Timer
    finally:
        logger.setLevel(level)
    return Timer
