"""Weights as the fused kernel reads them, and channels in the order of their classes. Torch only, differentiable.

Indices are computed on the tensors' device, so that a CUDA graph can record them.
"""

import torch
from torch import Tensor

from hetconv_cli.ops.hetconv2d.layout import Layout


def pack(weight_1x1: Tensor, weight_ring: Tensor, layout: Layout) -> Tensor:
    """[N, width], columns contiguous, filters and channels in class order; see `Layout`.

    Args:
        weight_1x1: [N, M, 1, 1].
        weight_ring: [N, M/P, taps - 1].
        layout: Of the forward launch.
    """
    dense, ring = weight_1x1.flatten(1), weight_ring.transpose(1, 2)  # [N, M], [N, taps - 1, M/P]
    order = torch.arange(layout.outputs, device=dense.device)
    if layout.shifted:
        order = filter_places(layout.outputs, layout.p, dense.device).argsort()
        dense, ring = in_class_order(dense.index_select(0, order), layout.p), ring.index_select(0, order)
    if layout.merge > 1:
        of_class = order % layout.p if layout.shifted else order * layout.p // layout.outputs
        slots = torch.arange(layout.merge, device=dense.device)
        own = (of_class % layout.merge).unsqueeze(1) == slots  # [N, merge]
        # [N, taps - 1, merge, M/P]: zeros in the slots of the group's other classes
        spread = torch.where(own[:, None, :, None], ring.unsqueeze(2), ring.new_zeros(()))
        ring = spread.flatten(2)[..., : layout.ring]
    return torch.cat((ring.flatten(1), dense), dim=1)


def pack_transposed(packed: Tensor, layout: Layout) -> Tensor:
    """The packed weights [M, width] of `layout.transposed()`, for the input gradient, from those of `layout`."""
    back = layout.transposed()
    taps = layout.taps - 1
    ring, dense = torch.split(packed, [layout.ring_width, layout.inputs], dim=1)
    filters = ring.view(layout.outputs, taps, layout.ring)
    if layout.outputs != layout.groups * layout.rows:
        filters = _filled_groups(filters, layout)
    by_group = filters.view(layout.groups, layout.rows, taps, layout.ring).permute(0, 3, 2, 1)
    # only the last group can have fewer channels than the others, so the channels are the first M
    own = by_group.reshape(layout.groups * layout.ring, back.ring_width)[: layout.inputs]
    return torch.cat((own, dense.t()), dim=1)


def _filled_groups(filters: Tensor, layout: Layout) -> Tensor:
    """`filters` [N, ...] with every group filled up to `layout.rows` by zeros."""
    group = torch.arange(layout.groups, device=filters.device)
    starts = _firsts(group * layout.merge, layout)
    stops = _firsts(((group + 1) * layout.merge).clamp(max=layout.p), layout)
    index = starts.unsqueeze(1) + torch.arange(layout.rows, device=filters.device)
    exists = (index < stops.unsqueeze(1)).flatten()
    filled = filters.index_select(0, index.flatten().clamp(max=layout.outputs - 1))
    return torch.where(exists[:, None, None], filled, filled.new_zeros(()))


def _firsts(of_class: Tensor, layout: Layout) -> Tensor:
    """`Layout.first` of the filters, for many classes."""
    count, p = layout.outputs, layout.p
    if layout.shifted:
        return of_class * (count // p) + of_class.clamp(max=count % p)
    return (of_class * count + p - 1) // p


def in_class_order(tensor: Tensor, p: int) -> Tensor:
    """Channels (dimension 1) of a shifted layer, m = c + p i, in class order; images stay channels_last."""
    if tensor.dim() == 2:
        return tensor.reshape(len(tensor), tensor.shape[1] // p, p).transpose(1, 2).flatten(1)
    batch, channels, height, width = tensor.shape
    by_pixel = tensor.permute(0, 2, 3, 1).reshape(batch, height, width, channels // p, p)
    return by_pixel.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def filter_places(count: int, p: int, device: torch.device) -> Tensor:
    """Where filter n of a shifted layer stands in class order: [count] int64."""
    n = torch.arange(count, device=device)
    of_class = n % p
    return of_class * (count // p) + of_class.clamp(max=count % p) + n // p
