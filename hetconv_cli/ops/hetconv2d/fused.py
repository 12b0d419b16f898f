"""The layer by one fused kernel, forward and backward: torch's side of it.

A shifted layer's channels are relabelled first and its filters afterwards, one pass over the memory each; a blocked
layer needs neither. Padding other than zeros is written out first.
"""

import torch
from torch import Tensor

from hetconv_cli.errors import ArgumentError
from hetconv_cli.ops.hetconv2d.layout import Layout, choose_merge
from hetconv_cli.ops.hetconv2d.packing import filter_places, in_class_order, pack
from hetconv_cli.ops.hetconv2d.registration import Numbers
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec
from hetconv_cli.ops.hetconv2d.taps import pad_as


def hetconv2d_triton(
    input: Tensor, weight_1x1: Tensor, weight_ring: Tensor, bias: Tensor | None, spec: HetConvSpec
) -> Tensor:
    """See `hetconv2d`; shapes as there, input batched; the output is channels_last."""
    dtype = compute_dtype(input)
    packed = pack_weights(weight_1x1.to(dtype), weight_ring.to(dtype), spec)
    image, numbers = _as_the_kernel_reads(input.to(dtype), spec)
    bias = None if bias is None else _filters_in_class_order(bias.to(dtype), spec)
    return _in_order(torch.ops.hetconv.fused(image, packed, bias, *numbers), spec)


def hetconv2d_triton_inference(
    input: Tensor,
    packed: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    spec: HetConvSpec,
    *,
    relu: bool,
    scale: Tensor | None = None,
) -> Tensor:
    """relu(scale * convolution + shift + residual) without gradients, on weights that `pack_weights` packed.

    Args:
        input: [batch, M, H, W].
        packed: From `pack_weights`, of the input's dtype.
        shift: [N] or None; a bias is a shift.
        residual: Of the output's shape, or None.
        spec: Of the layer.
        relu: Whether negative results become 0.
        scale: [N] or None.
    """
    image, numbers = _as_the_kernel_reads(input, spec)
    scale, shift = (None if of is None else _filters_in_class_order(of, spec) for of in (scale, shift))
    if residual is not None and _relabels(spec):
        places = filter_places(spec.geometry.out_channels, spec.p, residual.device)
        residual = residual.index_select(1, places.argsort())
    output = torch.ops.hetconv.fused_inference(image, packed, scale, shift, residual, relu, *numbers)
    return _in_order(output, spec)


def pack_weights(weight_1x1: Tensor, weight_ring: Tensor, spec: HetConvSpec) -> Tensor:
    """The weights as the kernel reads them, [N, width]; differentiable."""
    return pack(weight_1x1, weight_ring, layout_of(spec))


def layout_of(spec: HetConvSpec) -> Layout:
    """How the kernel cuts the layer."""
    g = spec.geometry
    merge = choose_merge(g.in_channels, g.out_channels, spec.p)
    return Layout(g.in_channels, g.out_channels, spec.p, merge, _relabels(spec), g.taps)


def compute_dtype(input: Tensor) -> torch.dtype:
    """What a convolution of `input` would compute in: autocast's type where that is on."""
    kind = input.device.type
    casts = _autocasts(kind) and input.dtype.is_floating_point and input.dtype != torch.float64  # as autocast does
    return torch.get_autocast_dtype(kind) if casts else input.dtype


def check_dtypes(input: Tensor, weight_1x1: Tensor) -> None:
    """Raises ArgumentError where input and weights differ and autocast does not bring them together."""
    if input.dtype != weight_1x1.dtype and not _autocasts(input.device.type):
        raise ArgumentError(f"input and weights must have one dtype; got {input.dtype} and {weight_1x1.dtype}")


def _autocasts(kind: str) -> bool:
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


def _as_the_kernel_reads(input: Tensor, spec: HetConvSpec) -> tuple[Tensor, Numbers]:
    g, layout = spec.geometry, layout_of(spec)
    padding = g.padding
    if g.padding_mode != "zeros":
        input, padding = pad_as(input, g), (0, 0)
    if layout.shifted:
        input = in_class_order(input, spec.p)
    return input, Numbers(g.kernel, g.stride, padding, g.dilation, spec.p, layout.merge, layout.shifted)


def _relabels(spec: HetConvSpec) -> bool:
    return spec.arrangement == "shifted" and spec.p > 1


def _filters_in_class_order(of_filters: Tensor, spec: HetConvSpec) -> Tensor:
    if not _relabels(spec):
        return of_filters
    return of_filters.index_select(0, filter_places(len(of_filters), spec.p, of_filters.device).argsort())


def _in_order(output: Tensor, spec: HetConvSpec) -> Tensor:
    if not _relabels(spec):
        return output
    return output.index_select(1, filter_places(output.shape[1], spec.p, output.device))
