"""A freshly initialised network, made to react to its input.

With random weights many networks put out nearly the same numbers whatever goes in: their BatchNorms still divide by
1, signals shrink from layer to layer until only biases are left, or the last matrix is zero. Then any two files
"agree". Statistics of one batch and noise in the zero matrices change that, and leave the graph as it is.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hetconv_cli.layers import HetConv2d

SEED = 20190
LEAST_SPREAD = 1e-4  # of a channel, relative to its layer's largest value; what spreads less is rounding noise


def condition(model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
    """A deep copy of `model`, in eval mode, that reacts to its input as a trained network does.

    Weights that are all zero get normal noise of variance 1 / fan-in. Then, in one forward over `arguments` (at least
    two samples), each BatchNorm takes the statistics of what it sees, and each convolution and linear layer is
    rescaled, filter by filter, to outputs of variance 1 (and mean 0 if it has a bias).
    """
    conditioned = copy.deepcopy(model).eval()
    with torch.no_grad():
        _fill_zero_weights(conditioned)
        norms = [module for module in conditioned.modules() if isinstance(module, _BatchNorm)]
        norms = [norm for norm in norms if norm.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        hooks = [layer.register_forward_hook(_Standardise()) for layer in conditioned.modules() if _has_filters(layer)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over the batches seen, here one
            norm.train()
        conditioned(*arguments)
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return conditioned.eval()


def _fill_zero_weights(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if parameter.numel() and not parameter.any() and (parameter.dim() > 1 or name.endswith("weight")):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))


def _has_filters(layer: nn.Module) -> bool:
    """Whether the first axis of all its parameters is that of its output channels."""
    if isinstance(layer, _ConvNd):
        return not layer.transposed
    return isinstance(layer, HetConv2d | nn.Linear)


class _Standardise:
    """Forward hook: rescales a layer, and its output with it, the first time that it is called."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, layer: Any, _: Any, output: Tensor) -> Tensor:
        if self.done:
            return output
        self.done = True
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else output.dim() - 1 - len(layer.kernel_size)
        std, mean = torch.std_mean(output, [other for other in range(output.dim()) if other != axis], correction=0)
        std = torch.where(std > LEAST_SPREAD * output.abs().max(), std, torch.ones_like(std))
        for parameter in layer.parameters(recurse=False):
            parameter /= _along(std, 0, parameter.dim())
        if layer.bias is None:
            return output / _along(std, axis, output.dim())
        layer.bias -= mean / std
        return (output - _along(mean, axis, output.dim())) / _along(std, axis, output.dim())


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    """`values`, [channels], shaped to broadcast along one axis of a tensor."""
    return values.view(*[1] * axis, -1, *[1] * (dims - axis - 1))
