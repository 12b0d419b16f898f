"""A freshly initialised network, made to react to its input.

With random weights many networks put out nearly the same numbers whatever goes in: their BatchNorms still divide by
1, signals shrink from layer to layer until only biases are left, or the last matrix is zero. Then any two files
"agree". Statistics of one batch and noise in the zero matrices change that, and leave the graph as it is.
"""

import copy
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hetconv_cli.layers import HetConv2d

SEED = 20190
SCORES_CLASSES = re.compile(r"\bcls_|\bclassification_head\b")  # names in torchvision.models.detection
MOSTLY_CONSTANT = 2.0  # mean of the channels, relative to their spread
LEAST_SPREAD = 1e-4  # of a layer's outputs, relative to the largest; what spreads less is rounding noise


def condition(model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
    """A deep copy of `model`, in eval mode, that reacts to its input as a trained network does.

    Weights that are all zero get normal noise of variance 1 / fan-in. Then, in one forward over `arguments` (at least
    two samples), each BatchNorm takes the statistics of what it sees, and a convolution or linear layer whose outputs
    are mostly constant is rescaled to variance 1, with mean 0 in each channel if it has a bias. So are the layers that
    score classes in torchvision's detectors, which otherwise find nothing. Their other layers stay: boxes that
    random regressors throw about turn rounding into other detections.
    """
    conditioned = copy.deepcopy(model).eval()
    with torch.no_grad():
        _fill_zero_weights(conditioned)
        norms = [module for module in conditioned.modules() if isinstance(module, _BatchNorm)]
        norms = [norm for norm in norms if norm.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        hooks = [
            layer.register_forward_hook(_Standardise(always=bool(SCORES_CLASSES.search(name))))
            for name, layer in conditioned.named_modules()
            if _is_linear(layer)
        ]
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


def _is_linear(layer: nn.Module) -> bool:
    """Whether its output scales with its parameters, and its bias is along the output's channels."""
    return isinstance(layer, HetConv2d | nn.Linear | _ConvNd)


class _Standardise:
    """Forward hook: rescales a layer, and its output with it, the first time that it is called."""

    def __init__(self, *, always: bool) -> None:
        self.always = always
        self.done = False

    def __call__(self, layer: Any, _: Any, output: Tensor) -> Tensor:
        if self.done:
            return output
        self.done = True
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else output.dim() - 1 - len(layer.kernel_size)
        variance, mean = torch.var_mean(
            output, [other for other in range(output.dim()) if other != axis], correction=0, keepdim=True
        )
        spread, constant = variance.mean().sqrt(), mean.square().mean().sqrt()
        wanted = self.always or constant > MOSTLY_CONSTANT * spread
        if not (wanted and spread > LEAST_SPREAD * output.abs().max()):
            return output
        for parameter in layer.parameters(recurse=False):
            parameter /= spread
        if layer.bias is None:
            return output / spread
        layer.bias -= mean.flatten() / spread
        return (output - mean) / spread
