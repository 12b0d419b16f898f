"""A model with every HetConv layer in the form that other runtimes run: two plain convolutions and their sum."""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hetconv_cli.conversion.copying import copy_structure
from hetconv_cli.conversion.fuse import fold_batchnorms
from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d.grouped import coarsened, group_kernels
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec, Order
from hetconv_cli.ops.hetconv2d.taps import reach

GROUP_CHANNELS = 16  # the width of a vector register in floats: narrower groups fall off the runtimes' fast paths


def lower(model: nn.Module, example: Any = None) -> nn.Module:
    """The same network for inference in plain Conv2d and sums, BatchNorm folded: it runs without this package.

    Every HetConv2d becomes a grouped K x K convolution plus a full 1 x 1 one, in a torch.fx.GraphModule, with groups of
    at least 16 channels where the layer allows: what vector units want, at the price of multiplying zeros. The result
    can be pickled, compiled and exported like any torch module.

    Args:
        model: Any network; it is left as it was. Give it before `fuse`, whose layers are not taken apart.
        example: As for `fuse`: an input that shows which BatchNorm follows which convolution.

    Raises:
        HetconvError: the forward pass failed, or the model cannot be copied.
    """
    return with_two_convolutions(fold_batchnorms(model, example))


def with_two_convolutions(model: nn.Module, least_channels: int = GROUP_CHANNELS) -> nn.Module:
    """A copy of `model` with two convolutions in the place of every HetConv2d; `model` is left as it is.

    The parameters of the other layers are shared with `model`. A layer that several parents share becomes one module
    that they share. Subclasses and layers with hooks or parametrizations stay: what they compute is not the layer's two
    convolutions alone.
    """
    lowered = copy_structure(model)
    new = {layer: _two_convolutions(layer, least_channels) for layer in lowered.modules() if _is_plain(layer)}
    for parent in list(lowered.modules()):
        for name, child in parent._modules.items():
            if _is_plain(child):
                parent._modules[name] = new[child]
    return new[lowered] if _is_plain(lowered) else lowered


def _is_plain(layer: nn.Module | None) -> TypeGuard[HetConv2d]:
    # A parametrized module is of a subclass that torch makes for it, so the type tells that too.
    return type(layer) is HetConv2d and not layer._forward_hooks and not layer._forward_pre_hooks


@torch.no_grad()
def _two_convolutions(layer: HetConv2d, least_channels: int) -> fx.GraphModule:
    """`layer` as a module whose code torch.fx wrote; input [batch, M, H, W] or [M, H, W]."""
    ring, spec = coarsened(layer.weight_ring, layer.spec, least_channels)
    parts = _Parts(layer, spec)
    parts.grouped.weight.copy_(group_kernels(ring, spec))
    parts.pointwise.weight.copy_(layer.weight_1x1)
    if parts.pointwise.bias is not None and layer.bias is not None:
        parts.pointwise.bias.copy_(layer.bias)
    module = fx.symbolic_trace(parts.requires_grad_(False))
    module.__class__.__name__ = "TwoConvolutions"
    return module.train(layer.training)


class _Parts(nn.Module):
    """What is traced: everything that depends on the layer's geometry is decided here, once."""

    def __init__(self, layer: HetConv2d, spec: HetConvSpec) -> None:
        super().__init__()
        g, weight = spec.geometry, layer.weight_1x1
        as_it: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        pads_first = g.padding_mode != "zeros"
        padding = (0, 0) if pads_first else g.padding
        beyond = [have - need for have, need in zip(padding, reach(g), strict=True)]
        self.pad = [side for of in reversed(g.padding) for side in (of, of)] if pads_first else None
        self.mode = g.padding_mode
        centre = tuple(slice(-by, by) if by < 0 else slice(None) for by in beyond)
        self.centre = centre if min(beyond) < 0 else None
        self.grouped = nn.Conv2d(
            len(spec.group_channels or range(g.in_channels)),
            len(spec.group_filters or range(g.out_channels)),
            g.kernel,
            g.stride,
            padding,
            g.dilation,
            spec.groups,
            bias=False,
            **as_it,
        )
        outside = (max(0, beyond[0]), max(0, beyond[1]))
        self.pointwise = nn.Conv2d(g.in_channels, g.out_channels, 1, g.stride, outside, bias=g.bias, **as_it)
        for name, order in (("channels", spec.group_channels), ("positions", spec.positions)):
            self.register_buffer(name, _index(order, weight.device))

    def forward(self, input: Tensor) -> Tensor:
        """Grouped K x K plus 1 x 1 at the windows' centres."""
        if self.pad is not None:
            input = F.pad(input, self.pad, mode=self.mode)
        grouped = self.grouped(_select(input, self.channels))
        pointwise: Tensor = self.pointwise(input if self.centre is None else input[(..., *self.centre)])
        return pointwise + _select(grouped, self.positions)  # the first operand lays out the sum


def _index(order: Order | None, device: torch.device) -> Tensor | None:
    return None if order is None else torch.tensor(order, device=device)


def _select(tensor: Tensor, index: Any) -> Tensor:
    return tensor if index is None else tensor.index_select(-3, index)
