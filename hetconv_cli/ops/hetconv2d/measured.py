"""What was measured on GPUs: where the fused kernel is faster than the vendor's, and with which tile.

The table is empty: no run on a GPU has been taken over yet. `auto` therefore keeps the vendor's convolutions, and
says so. Rows come from `tests/gpu/bench_gpu.py`, never from an estimate.
"""

from dataclasses import dataclass

import torch

from hetconv_cli.geometry import Geometry, Size
from hetconv_cli.ops.hetconv2d.availability import architecture
from hetconv_cli.ops.hetconv2d.layout import Tile


@dataclass(frozen=True)
class Shape:
    """The class of shapes that a row stands for."""

    architecture: str  # 'sm_90'
    dtype: str  # 'bfloat16'
    in_channels: int
    out_channels: int
    kernel: Size
    stride: Size
    p: int


@dataclass(frozen=True)
class Row:
    """Median times of one layer, forward, in microseconds, from one run, and the fastest tile."""

    tile: Tile
    fused_us: float
    grouped_us: float
    standard_us: float


MEASURED: dict[Shape, Row] = {}


def lookup(device: torch.device, dtype: torch.dtype, geometry: Geometry, p: int) -> Row | None:
    """The row for a layer, if one was measured on GPUs like `device`."""
    if not MEASURED or device.type != "cuda":
        return None
    g = geometry
    name = str(dtype).removeprefix("torch.")
    return MEASURED.get(Shape(architecture(device), name, g.in_channels, g.out_channels, g.kernel, g.stride, p))
