"""The layers that the paper compares with: a K x K convolution within groups, then a 1 x 1 across them."""

from typing import Any

import torch
from torch import Tensor, nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import PaddingMode
from hetconv_cli.ops.hetconv2d import validation


class GroupwisePointwise(nn.Module):
    """GWC+PWC: a K x K convolution in `groups` groups, M -> M, then a 1 x 1 convolution M -> N.

    The form that the paper's tables count (`hetconv_cli.equations.gwc_table_macs`). Conv2d's arguments in Conv2d's
    order, then `groups`; stride, padding and dilation go to the K x K convolution, the bias to the 1 x 1.

    Raises:
        ArgumentError: an argument out of range; `in_channels` not divisible by `groups`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: validation.IntOrPair,
        stride: validation.IntOrPair = 1,
        padding: str | validation.IntOrPair = 0,
        dilation: validation.IntOrPair = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        groups: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        validation.check_count(groups, "groups")
        g = validation.geometry(
            in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias, padding_mode=padding_mode
        )
        if in_channels % groups:
            raise ArgumentError(f"`in_channels` (={in_channels}) must be divisible by `groups` (={groups})")
        self.geometry = g
        self.groups = groups
        self.spatial = nn.Conv2d(
            in_channels,
            in_channels,
            g.kernel,
            g.stride,
            g.padding,
            g.dilation,
            groups,
            bias=False,
            padding_mode=g.padding_mode,
            device=device,
            dtype=dtype,
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Both convolutions in a row, on [batch, M, H, W] or [M, H, W]."""
        output: Tensor = self.pointwise(self.spatial(input))
        return output


class DepthwisePointwise(GroupwisePointwise):
    """DWC+PWC: a K x K depthwise convolution, then a 1 x 1 convolution M -> N (MobileNet; equation (4)).

    Conv2d's arguments in Conv2d's order.

    Raises:
        ArgumentError: an argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: validation.IntOrPair,
        stride: validation.IntOrPair = 1,
        padding: str | validation.IntOrPair = 0,
        dilation: validation.IntOrPair = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias,
            padding_mode,
            groups=validation.check_count(in_channels, "in_channels"),
            device=device,
            dtype=dtype,
        )
