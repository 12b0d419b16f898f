"""The layer, class by class from plain convolutions. This page defines what a HetConv is.

It multiplies exactly what the paper counts, so a counter that watches it counts the layer's work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hetconv_cli.arrangement import members
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec
from hetconv_cli.ops.hetconv2d.taps import crop, pad_as, reach, window


def hetconv2d_reference(
    input: Tensor, weight_1x1: Tensor, weight_ring: Tensor, bias: Tensor | None, spec: HetConvSpec
) -> Tensor:
    """See `hetconv2d`; shapes as there, input batched."""
    geometry, m, own = spec.geometry, spec.geometry.in_channels, spec.geometry.in_channels // spec.p
    filters = members(geometry.out_channels, spec.p, spec.arrangement)
    channels = members(geometry.in_channels, spec.p, spec.arrangement)
    sizes = [len(mine) for mine in filters]
    filter_order = torch.tensor([n for mine in filters for n in mine], device=input.device)
    channel_order = torch.tensor([c for block in channels for c in block], device=input.device)
    own_channels = torch.tensor([channels[of] for of, mine in enumerate(filters) for _ in mine], device=input.device)

    # Channels and filters in the order of their classes, channels twice in a row: all but one class is then one slice.
    padded = pad_as(input, geometry).index_select(1, channel_order)
    centres = crop(padded, *reach(geometry)).repeat(1, 2, 1, 1)  # what the centre tap of each window sees
    rows = weight_1x1.index_select(0, filter_order)
    rings, own_centres = weight_ring.index_select(0, filter_order), rows[..., 0, 0].gather(1, own_channels)
    kernels = torch.split(window(rings, own_centres, geometry.kernel), sizes)
    pointwise = torch.split(rows.index_select(1, channel_order).repeat(1, 2, 1, 1), sizes)

    outputs: list[Tensor] = []
    for of_class, block in enumerate(torch.split(padded, own, dim=1)):
        if not sizes[of_class]:
            continue
        part = F.conv2d(block, kernels[of_class], None, geometry.stride, 0, geometry.dilation)
        if own < m:
            others = slice((of_class + 1) * own, of_class * own + m)
            part = part + F.conv2d(centres[:, others], pointwise[of_class][:, others], None, geometry.stride)
        outputs.append(part)

    output = torch.cat(outputs, dim=1).index_select(1, filter_order.argsort())
    return output if bias is None else output + bias.to(output.dtype).view(-1, 1, 1)  # autocast: as a conv adds it
