"""Sums over window positions, all that least squares needs to know of a HetConv's inputs and wanted outputs.

For a class c of filters the unknowns are the ring taps on its own M/P channels (R = M/P (K^2 - 1) of them), a centre
tap for each of the M channels, and the bias. The centres are the same for every class, so their products are summed
once. Together the sums take M^2 (1 + (K^2 - 1) + (K^2 - 1)^2 / P) numbers of 8 bytes, plus M N K^2 for the products
with the outputs, however many images are seen: 52 + 19 MB for 512 channels, 512 filters, K = 3, P = 4.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hetconv_cli.arrangement import members
from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d.taps import pad_as

ENOUGH = 16  # positions for each unknown; where there are more, that many are drawn
AT_LEAST = 20_000  # positions that are taken, if there are so many, however few the unknowns
BLOCKS = 4  # rows and columns of blocks that a map is cut into; one block of each row is on the diagonal
_BLOCK = 2**23  # numbers of a block of windows (64 MB): larger ones are summed piece by piece


@dataclass(frozen=True)
class ClassMoments:
    """What least squares needs for one class: products over the rows [ring taps, centre taps, 1] and the outputs."""

    gram: Tensor  # [R + M + 1, R + M + 1]
    with_output: Tensor  # [R + M + 1, filters of the class]
    output_energy: Tensor  # [filters of the class]: sum of squares

    @property
    def positions(self) -> float:
        """How many window positions are in the sums."""
        return float(self.gram[-1, -1])

    def squared_error(self, weights: Tensor) -> Tensor:
        """Sum over positions of (wanted - got)^2 for each filter, with `weights` [R + M + 1, filters]."""
        fitted = (weights * (self.gram @ weights)).sum(0)
        return (self.output_energy - 2 * (weights * self.with_output).sum(0) + fitted).clamp_min(0)

    def spread(self) -> Tensor:
        """Sum over positions of (wanted - its mean)^2 for each filter."""
        return (self.output_energy - self.with_output[-1] ** 2 / max(self.positions, 1)).clamp_min(0)


class Moments:
    """The sums of one layer, gathered image by image in double precision.

    Args:
        layer: The HetConv2d whose weights are wanted. Only its geometry and classes are used.
        windows: How many calls with one image are expected; with many positions in each, a part of them is drawn.
        key: What the draw depends on besides the number of the image: the layer's name and a seed.
    """

    def __init__(self, layer: HetConv2d, windows: int, key: str) -> None:
        g, self._p = layer.geometry, layer.p
        self._geometry, self._key = g, key
        device = layer.weight_1x1.device
        self._order = torch.tensor(
            [m for own in members(g.in_channels, layer.p, layer.arrangement) for m in own], device=device
        )
        self.unknowns = layer.fan_in + g.bias
        self._quota = math.ceil(max(AT_LEAST, ENOUGH * self.unknowns) / max(1, windows))
        self._middle = g.taps // 2
        rings, centres = g.in_channels // layer.p * (g.taps - 1), g.in_channels + 1

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self._centre_centre = zeros(centres, centres)
        self._ring_centre = zeros(layer.p * rings, centres)
        self._ring_ring = zeros(layer.p, rings, rings)
        self._centre_output = zeros(centres, g.out_channels)
        self._ring_output = zeros(layer.p * rings, g.out_channels)
        self._output_energy = zeros(g.out_channels)

    @property
    def bytes(self) -> int:
        """Memory of the sums."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    @property
    def positions(self) -> int:
        """How many window positions are in the sums."""
        return int(self._centre_centre[-1, -1])

    @property
    def mean_squares(self) -> Tensor:
        """Of each input channel at the windows' centres: [M]."""
        return self._centre_centre.diagonal()[:-1] / max(1, self.positions)

    def absorb(self, other: "Moments") -> None:
        """Adds another's sums of the same layer to these, in place."""
        for name, mine in vars(self).items():
            if isinstance(mine, Tensor) and mine.is_floating_point():
                mine += vars(other)[name]

    def add(
        self,
        inputs: Tensor,
        outputs: Tensor,
        images: tuple[int, ...],
        call: int = 0,
        *,
        blocks: Literal["all", "diagonal", "others"] = "all",
    ) -> None:
        """Adds a call.

        Args:
            inputs: [n, M, H, W].
            outputs: The wanted ones, [n, N, H_o, W_o].
            images: The numbers of the n images.
            call: Which call with these images it is.
            blocks: Each map is cut into 4 x 4 blocks: take all, or those on a diagonal (another one for each image), a
                quarter that touches every row and column of blocks, or the others.
        """
        if inputs.dim() == 3:
            inputs, outputs = inputs[None], outputs[None]
        padded = pad_as(inputs, self._geometry)
        per_image = max(1, len(inputs) // max(1, len(images)))  # a detector's head sees several boxes of one image
        for index in range(len(inputs)):
            image = images[min(index // per_image, len(images) - 1)]
            positions = self._draw(outputs.shape[-2] * outputs.shape[-1], f"{image}/{index % per_image}/{call}")
            if blocks != "all":
                positions = positions[_on_diagonal(positions, outputs.shape[-2:], image) == (blocks == "diagonal")]
            step = max(1, _BLOCK // (self._geometry.in_channels * self._geometry.taps))
            for some in _pieces(positions, step):
                self._add(padded[index], outputs[index], some.to(padded.device))

    def of_class(self, index: int, filters: Tensor) -> ClassMoments:
        """The sums of one class, with its own `filters` only."""
        rings = self._ring_ring.shape[-1]
        mine = slice(index * rings, (index + 1) * rings)
        cross = self._ring_centre[mine]
        upper = torch.cat((self._ring_ring[index], cross), 1)
        gram = torch.cat((upper, torch.cat((cross.T, self._centre_centre), 1)))
        outputs = torch.cat((self._ring_output[mine][:, filters], self._centre_output[:, filters]))
        return ClassMoments(gram, outputs, self._output_energy[filters])

    def _draw(self, count: int, where: str) -> Tensor:
        if count <= self._quota:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._key}/{where}".encode()))
        return torch.randperm(count, generator=generator)[: self._quota].sort().values

    def _add(self, padded: Tensor, output: Tensor, positions: Tensor) -> None:
        """Adds some positions of one image: padded input [M, H, W], output [N, H_o, W_o]."""
        g = self._geometry
        windows = _windows(padded, positions, output.shape[-1], g.kernel, g.stride, g.dilation).double()
        wanted = output.flatten(1)[:, positions].double()
        rings = torch.cat((windows[:, : self._middle], windows[:, self._middle + 1 :]), 1)[self._order]
        rings = rings.reshape(self._p, -1, len(positions))
        every = rings.flatten(0, 1)
        centres = torch.cat((windows[:, self._middle], windows.new_ones(1, len(positions))))
        self._centre_centre.addmm_(centres, centres.T)
        self._centre_output.addmm_(centres, wanted.T)
        self._output_energy += (wanted**2).sum(1)
        if every.numel():
            self._ring_centre.addmm_(every, centres.T)
            self._ring_output.addmm_(every, wanted.T)
            self._ring_ring.baddbmm_(rings, rings.mT)


def _on_diagonal(positions: Tensor, size: torch.Size, image: int) -> Tensor:
    """Neighbours are much alike, so what is held back must be blocks: single positions would be known from theirs."""
    row, column = positions // size[1] * BLOCKS // size[0], positions % size[1] * BLOCKS // size[1]
    return (row + column + image) % BLOCKS == BLOCKS - 1


def _pieces(positions: Tensor, step: int) -> list[Tensor]:
    return [positions[start : start + step] for start in range(0, len(positions), step)]


def _windows(
    padded: Tensor,
    positions: Tensor,
    columns: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The windows [M, K_h*K_w, positions] of a padded input [M, H, W] at some output positions, `columns` in a row."""
    width = padded.shape[-1]
    corners = positions // columns * stride[0] * width + positions % columns * stride[1]
    rows = torch.arange(kernel[0], device=padded.device) * dilation[0] * width
    taps = (rows[:, None] + torch.arange(kernel[1], device=padded.device) * dilation[1]).flatten()
    index = taps[:, None] + corners
    return padded.flatten(1)[:, index.flatten()].reshape(len(padded), len(taps), len(positions))
