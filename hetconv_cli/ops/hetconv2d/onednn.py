"""The two convolutions for inference on the CPU, by oneDNN with the weights in its own layout.

grouped K x K, then the residual, then the 1 x 1 added in place with ReLU: nothing is reordered at a call, and there is
one buffer, the output. torch's own operators do this; they are those that torch.compile calls.
"""

import torch
from torch import Tensor

from hetconv_cli.ops.hetconv2d.grouped import rows_are_pixels
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec
from hetconv_cli.ops.hetconv2d.taps import reach

_OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")


def serves_layer(spec: HetConvSpec, weight: Tensor) -> bool:
    """Whether layers like this can be packed: float32 on the CPU, blocked, zero padding as far as the window reaches.

    An older torch, or one built without oneDNN, has none of the operators.
    """
    g = spec.geometry
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and spec.group_channels is None
        and spec.positions is None
        and g.padding_mode == "zeros"
        and g.padding == reach(g)
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    )


def serves_input(input: Tensor) -> bool:
    """Whether this input is one for packed weights: images in channels_last."""
    return (
        rows_are_pixels(input) and input.dtype == torch.float32 and input.numel() > 0 and torch._C._get_mkldnn_enabled()
    )


def pack(kernels: Tensor, weight_1x1: Tensor, spec: HetConvSpec) -> tuple[Tensor, Tensor]:
    """`kernels` (from `group_kernels`) and `weight_1x1`, as oneDNN reads them."""
    g, reorder = spec.geometry, torch.ops.mkldnn._reorder_convolution_weight
    grouped = reorder(_channels_last(kernels), g.padding, g.stride, g.dilation, spec.groups, None)
    pointwise = reorder(_channels_last(weight_1x1), (0, 0), g.stride, (1, 1), 1, None)
    return grouped, pointwise


def hetconv2d_onednn(
    input: Tensor,
    packed: tuple[Tensor, Tensor],
    bias: Tensor | None,
    spec: HetConvSpec,
    residual: Tensor | None,
    *,
    relu: bool,
) -> Tensor:
    """relu(convolution + bias + residual), without gradients; `packed` from `pack`, the others as in `hetconv2d`."""
    g, ops = spec.geometry, torch.ops.mkldnn
    output: Tensor = ops._convolution_pointwise(
        input, packed[0], bias, g.padding, g.stride, g.dilation, spec.groups, "none", [], ""
    )
    if residual is not None:
        output.add_(residual)
    ops._convolution_pointwise_.binary(
        output, input, packed[1], None, (0, 0), g.stride, (1, 1), 1, "add", 1.0, "relu" if relu else None, [], None
    )
    return output


def _channels_last(weight: Tensor) -> Tensor:
    return weight.detach().contiguous(memory_format=torch.channels_last)
