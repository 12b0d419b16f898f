"""Weights for a new layer, from the convolution that it replaces."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hetconv_cli.geometry import Geometry
from hetconv_cli.layers import GroupwisePointwise, HetConv2d
from hetconv_cli.ops.hetconv2d.taps import split_window

Transfer = Literal["center", "sum", "fresh"]


@torch.no_grad()
def transfer_weights(new: HetConv2d | GroupwisePointwise, conv: nn.Conv2d, transfer: Transfer) -> None:
    """Fills `new` from `conv`, biases included.

    center: what the dense kernels say of the new ones. HetConv: K x K where the class has them, the centre tap
        elsewhere. GWC/DWC+PWC: the nearest such pair in the least-squares sense, by a singular value decomposition
        within each group.
    sum: as center, but HetConv's 1 x 1 kernels are the sums of the dense taps: on even surfaces that is the same.
    fresh: `conv` is freshly initialised, so its weights are numbers from the network's own initialisation; they are
        scaled to the new layer's fan-in, so that signals keep the size that the network's author meant.
    """
    if conv.weight.is_meta:
        return
    if isinstance(new, HetConv2d):
        _fill_hetconv(new, conv.weight, transfer)
    elif transfer == "fresh":
        _fresh_pair(new, conv.weight)
    else:
        _nearest_pair(new, conv.weight)
    if conv.bias is not None:
        bias_of(new).copy_(conv.bias)


def bias_of(layer: HetConv2d | GroupwisePointwise) -> nn.Parameter:
    """The bias of a layer that has one."""
    return layer.get_parameter("bias" if isinstance(layer, HetConv2d) else "pointwise.bias")


@torch.no_grad()
def one_convolution(
    depthwise: nn.Conv2d,
    between: Sequence[nn.Module],
    pointwise: nn.Conv2d,
    *,
    geometry: Geometry,
    transfer: Transfer,
) -> nn.Conv2d:
    """The dense convolution M -> N that a depthwise + pointwise pair comes nearest to, what is between taken as linear.

    Its kernels are pointwise[n, m] * depthwise[m, :, :].

    center: times the scale of each BatchNorm in between on channel m; where the pair has a bias, the BatchNorms' shifts
        and the depthwise bias are carried into it, else they are left to the BatchNorm that follows. An activation in
        between has no linear equivalent and is left out.
    fresh: scaled so that each filter has the pointwise filter's size, which is what the network's initialisation and
        the BatchNorm in between make of a signal.
    """
    g, weight = geometry, depthwise.weight
    dense = nn.Conv2d(
        *(g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation),
        bias=g.bias,
        padding_mode=g.padding_mode,
        device="meta",
        dtype=weight.dtype,
    ).to_empty(device=weight.device)
    dense.weight.requires_grad_(weight.requires_grad)
    dense.train(depthwise.training)
    if weight.is_meta:
        return dense
    scale, shift = _affine(depthwise, between)
    mixing = pointwise.weight[:, :, 0, 0]  # [N, M]
    kernels = mixing[..., None, None] * weight[:, 0]  # [N, M, K_h, K_w]
    if transfer == "fresh":
        size = kernels.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
        kernels = kernels * (mixing.norm(dim=1) / size)[:, None, None, None]
    else:
        kernels = kernels * scale[:, None, None]
    dense.weight.copy_(kernels)
    if dense.bias is not None and pointwise.bias is not None:
        dense.bias.copy_(pointwise.bias + mixing @ shift if transfer != "fresh" else pointwise.bias)
    return dense


def _affine(conv: nn.Conv2d, between: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel behind `conv`, by its bias and the BatchNorms in `between` as in eval mode."""
    scale = conv.weight.new_ones(conv.out_channels)
    shift = torch.zeros_like(scale) if conv.bias is None else conv.bias.clone()
    for norm in between:
        if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) or norm.running_var is None:
            continue
        factor = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
        mean = norm.running_mean if norm.running_mean is not None else torch.zeros_like(scale)
        scale = scale * factor
        shift = (shift - mean) * factor + (0.0 if norm.bias is None else norm.bias)
    return scale, shift


def _fill_hetconv(new: HetConv2d, weight: Tensor, transfer: Transfer) -> None:
    own = new.class_channels().to(weight.device)[..., None, None]
    kernels = weight.gather(1, own.expand(-1, -1, *weight.shape[2:]))
    dense_fan_in = weight[0].numel()
    scale = math.sqrt(dense_fan_in / new.fan_in) if transfer == "fresh" else 1.0
    centres = split_window(weight)[1]
    if transfer == "sum":
        own_centres = centres.gather(1, own[..., 0, 0])
        centres = weight.sum((-2, -1)).scatter(1, own[..., 0, 0], own_centres)
    new.weight_1x1.copy_(centres[..., None, None] * scale)
    new.weight_ring.copy_(split_window(kernels)[0] * scale)


def _fresh_pair(new: GroupwisePointwise, weight: Tensor) -> None:
    """The K x K part keeps the size of a signal; the 1 x 1 has the dense layer's gain, K_h K_w times fewer terms."""
    taps = weight[0, 0].numel()
    nn.init.kaiming_normal_(new.spatial.weight, nonlinearity="linear")
    new.pointwise.weight.copy_(split_window(weight)[1][..., None, None] * math.sqrt(taps))


def _nearest_pair(new: GroupwisePointwise, weight: Tensor) -> None:
    """For each group, dense [N, M/G * taps] ~ pointwise [N, M/G] @ spatial [M/G, M/G * taps], the best of that rank."""
    n, m = weight.shape[:2]
    groups, size = new.groups, m // new.groups
    dense = weight.double().reshape(n, groups, -1).transpose(0, 1)  # [G, N, M/G * taps]
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    rank = min(size, values.shape[-1])
    root = values[:, :rank].sqrt()
    pointwise = dense.new_zeros(groups, n, size)
    spatial = dense.new_zeros(groups, size, dense.shape[-1])
    pointwise[..., :rank] = left[..., :rank] * root[:, None]
    spatial[:, :rank] = root[..., None] * right[:, :rank]
    new.pointwise.weight.copy_(pointwise.transpose(0, 1).reshape(n, m, 1, 1))
    new.spatial.weight.copy_(spatial.reshape(new.spatial.weight.shape))
