"""The layer by the vendor's convolutions: grouped K x K without its centre tap, plus a full 1 x 1.

Two calls whatever P is. The grouped convolution's centre taps are zeros (its centre is in the 1 x 1), so it executes
N M/P multiplications per output pixel more than the layer needs: + 8.33 % at K = 3, P = 4. Where an input is infinite,
those zeros make NaN of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hetconv_cli.ops.hetconv2d.spec import HetConvSpec, Order, make_spec, own_channels
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


def coarsened(weight_ring: Tensor, spec: HetConvSpec, least_channels: int) -> tuple[Tensor, HetConvSpec]:
    """The same layer with a smaller part: classes joined until each has `least_channels` channels, if P allows.

    The joined classes' rings hold zeros where a filter had none: more multiplications, in groups wide enough for vector
    units (ONNX Runtime and oneDNN leave their fast path below 16 channels a group).
    """
    m, p = spec.geometry.in_channels, spec.p
    part = max((d for d in range(1, p + 1) if p % d == 0 and m // d >= min(least_channels, m)), default=1)
    if part == p:
        return weight_ring, spec
    wide = make_spec(spec.geometry, part, spec.arrangement)
    places = [
        [theirs.index(m) for m in own] for own, theirs in zip(own_channels(spec), own_channels(wide), strict=True)
    ]
    index = torch.tensor(places, device=weight_ring.device)[..., None].expand_as(weight_ring)
    ring = weight_ring.new_zeros(spec.geometry.out_channels, m // part, spec.geometry.taps - 1)
    return ring.scatter(1, index, weight_ring), wide


def two_convolutions(
    input: Tensor,
    kernels: Tensor,
    weight_1x1: Tensor,
    bias: Tensor | None,
    spec: HetConvSpec,
    residual: Tensor | None = None,
) -> Tensor:
    """Grouped K x K with `kernels` (from `group_kernels`), plus `residual`, plus the 1 x 1 at the windows' centres.

    The residual comes before the 1 x 1, which compilers then add, with a ReLU, in place.
    """
    g = spec.geometry
    padding = g.padding
    if g.padding_mode != "zeros":
        input, padding = pad_as(input, g), (0, 0)
    mine = _select(input, 1, spec.group_channels)
    # A window reaches beyond its centre: what the padding lacks of that is cut off the input, what it has more is kept.
    beyond = [have - need for have, need in zip(padding, reach(g), strict=True)]
    centres = crop(input, max(0, -beyond[0]), max(0, -beyond[1]))
    if spec.positions is None and max(beyond) <= 0 and rows_are_pixels(input):
        grouped = F.conv2d(mine, kernels, bias, g.stride, padding, g.dilation, spec.groups)
        grouped = grouped.contiguous(memory_format=torch.channels_last)  # with selected channels it may be anything
        grouped = grouped if residual is None else grouped.add_(residual)
        return _add_pointwise(grouped, centres[..., :: g.stride[0], :: g.stride[1]], weight_1x1)
    grouped = _select(F.conv2d(mine, kernels, None, g.stride, padding, g.dilation, spec.groups), 1, spec.positions)
    grouped = grouped if residual is None else grouped + residual
    pointwise = F.conv2d(centres, weight_1x1, bias, g.stride, (max(0, beyond[0]), max(0, beyond[1])))
    # The first operand lays out the sum, and is the buffer in which torch.compile adds the other.
    return grouped + pointwise if spec.positions is None else pointwise + grouped


def rows_are_pixels(input: Tensor) -> bool:
    """Whether the 1 x 1 can be a matrix product added in place: on the CPU, channels_last, no tracer or autocast."""
    return (
        input.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")  # which leaves in-place products alone
        and input.is_contiguous(memory_format=torch.channels_last)
        and not input.is_contiguous()
    )


def _add_pointwise(output: Tensor, centres: Tensor, weight_1x1: Tensor) -> Tensor:
    """`output` [batch, N, H, W] in channels_last with the 1 x 1 of `centres` added in place: no second buffer."""
    pixels = output.permute(0, 2, 3, 1).view(-1, output.shape[1])
    pixels.addmm_(centres.permute(0, 2, 3, 1).reshape(-1, centres.shape[1]), weight_1x1.flatten(1).t())
    return output


def _select(tensor: Tensor, dim: int, index: Order | None) -> Tensor:
    return tensor if index is None else tensor.index_select(dim, torch.tensor(index, device=tensor.device))
