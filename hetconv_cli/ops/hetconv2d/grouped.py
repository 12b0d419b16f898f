"""The layer by the vendor's convolutions: grouped K x K without its centre tap, plus a full 1 x 1.

Two calls whatever P is. The grouped convolution's centre taps are zeros (its centre is in the 1 x 1), so it executes
N M/P multiplications per output pixel more than the layer needs: + 8.33 % at K = 3, P = 4. Where an input is infinite,
those zeros make NaN of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hetconv_cli.ops.hetconv2d.spec import HetConvSpec, Order
from hetconv_cli.ops.hetconv2d.taps import crop, pad_as, reach, window


def hetconv2d_grouped(
    input: Tensor, weight_1x1: Tensor, weight_ring: Tensor, bias: Tensor | None, spec: HetConvSpec
) -> Tensor:
    """See `hetconv2d`; shapes as there, input batched."""
    return two_convolutions(input, group_kernels(weight_ring, spec), weight_1x1, bias, spec)


def group_kernels(weight_ring: Tensor, spec: HetConvSpec) -> Tensor:
    """Weights of the grouped convolution, [filters in group order, M/P, K_h, K_w], centre taps zero."""
    centre = weight_ring.new_zeros(weight_ring.shape[:2])
    return _select(window(weight_ring, centre, spec.geometry.kernel), 0, spec.group_filters)


def two_convolutions(
    input: Tensor, kernels: Tensor, weight_1x1: Tensor, bias: Tensor | None, spec: HetConvSpec
) -> Tensor:
    """Grouped K x K with `kernels` (from `group_kernels`) plus the 1 x 1 at the windows' centres."""
    g = spec.geometry
    padding = g.padding
    if g.padding_mode != "zeros":
        input, padding = pad_as(input, g), (0, 0)
    mine = _select(input, 1, spec.group_channels)
    grouped = F.conv2d(mine, kernels, None, g.stride, padding, g.dilation, spec.groups)
    # A window reaches beyond its centre: what the padding lacks of that is cut off the input, what it has more is kept.
    beyond = [have - need for have, need in zip(padding, reach(g), strict=True)]
    centres = crop(input, max(0, -beyond[0]), max(0, -beyond[1]))
    pointwise = F.conv2d(centres, weight_1x1, bias, g.stride, (max(0, beyond[0]), max(0, beyond[1])))
    return pointwise + _select(grouped, 1, spec.positions)  # the first operand lays out the sum


def _select(tensor: Tensor, dim: int, index: Order | None) -> Tensor:
    return tensor if index is None else tensor.index_select(dim, torch.tensor(index, device=tensor.device))
