"""A model with every HetConv2d in the form that other runtimes run: two plain convolutions with constant weights."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from hetconv_cli.convert.copying import copy_structure
from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d.grouped import coarsened, group_kernels, two_convolutions

GROUP_CHANNELS = 16  # the width of a vector register in floats: narrower groups fall off the runtimes' fast paths


class TwoConvolutions(nn.Module):
    """A HetConv2d whose grouped kernels are worked out once, so that a traced graph holds them as constants.

    Input [batch, M, H, W] or [M, H, W]; output as the HetConv2d's. For inference only: its weights are buffers.
    """

    kernels: Tensor
    weight_1x1: Tensor
    bias: Tensor | None

    def __init__(self, layer: HetConv2d) -> None:
        super().__init__()
        with torch.no_grad():
            ring, self.spec = coarsened(layer.weight_ring, layer.spec, GROUP_CHANNELS)
            self.register_buffer("kernels", group_kernels(ring, self.spec))
            self.register_buffer("weight_1x1", layer.weight_1x1.detach().clone())
            self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Grouped K x K plus 1 x 1."""
        if input.dim() == 3:
            return self(input.unsqueeze(0)).squeeze(0)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
        return two_convolutions(input, self.kernels, self.weight_1x1, self.bias, self.spec)


def lower(model: nn.Module) -> nn.Module:
    """A copy of `model` with a `TwoConvolutions` in the place of every HetConv2d; `model` is left as it is.

    The parameters of the other layers are shared with `model`.

    A layer that several parents share becomes one module that they share. Subclasses and layers with hooks or
    parametrizations stay: what they compute is not the layer's two convolutions alone.
    """
    lowered = copy_structure(model)
    new: dict[nn.Module, nn.Module] = {layer: TwoConvolutions(layer) for layer in lowered.modules() if _is_plain(layer)}
    if lowered in new:
        return new[lowered]
    for parent in list(lowered.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return lowered


def _is_plain(layer: nn.Module) -> TypeGuard[HetConv2d]:
    # A parametrized module is of a subclass that torch makes for it, so the type tells that too.
    return type(layer) is HetConv2d and not layer._forward_hooks and not layer._forward_pre_hooks
