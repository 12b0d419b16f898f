"""HetConv2d: a drop-in for nn.Conv2d with heterogeneous kernels."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hetconv_cli.arrangement import Arrangement
from hetconv_cli.geometry import PaddingMode
from hetconv_cli.ops.hetconv2d import Choice, Implementation, api, validation
from hetconv_cli.ops.hetconv2d.spec import own_channels
from hetconv_cli.ops.hetconv2d.taps import window


class HetConv2d(nn.Module):
    """Convolution with K x K kernels on M/P of the input channels of each filter and 1 x 1 kernels on the others.

    Takes Conv2d's arguments in Conv2d's order, then `p` and `arrangement`. Input [batch, in_channels, H, W] or
    [in_channels, H, W]; output as Conv2d's. Source: HetConv, CVPR 2019, section 3.

    Args:
        in_channels: M, divisible by `p`.
        out_channels: N, any positive number.
        kernel_size: Odd; one number or (height, width).
        stride: One number or (height, width).
        padding: Numbers, 'same' or 'valid'. The 1 x 1 kernels read the centre of the window whatever it is.
        dilation: Spacing of the K x K taps.
        bias: Whether to add a bias.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        p: The part: each filter has a K x K kernel on M/P channels. 1 is a standard convolution, "pc" is M.
        arrangement: 'blocked' (neighbouring channels make a class) or 'shifted' (the paper's figure 3).
        device: Where to make the parameters.
        dtype: Their type.

    Attributes:
        weight_1x1: [N, M, 1, 1], the 1 x 1 kernels, and on a filter's own class the centre taps.
        weight_ring: [N, M/P, K_h*K_w - 1], the K x K kernels without their centre. Together the two hold exactly
            N (M/P K^2 + M - M/P) weights.
        bias: [N] or None.
        implementation: 'auto' unless set to one of `hetconv_cli.ops.hetconv2d.IMPLEMENTATIONS`.

    Raises:
        ArgumentError: an argument out of range; `in_channels` not divisible by `p`.

    Example:
        >>> layer = HetConv2d(64, 128, 3, padding=1, p=4)
        >>> layer(torch.randn(1, 64, 8, 8)).shape
        torch.Size([1, 128, 8, 8])
    """

    bias: nn.Parameter | None

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
        p: int | Literal["pc"],
        arrangement: Arrangement = "blocked",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = validation.spec(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias,
            padding_mode=padding_mode,
            p=p,
            arrangement=arrangement,
        )
        g = self.geometry = self.spec.geometry
        self.p, self.arrangement = self.spec.p, self.spec.arrangement
        # Conv2d's attributes, for code that reads them
        self.in_channels, self.out_channels, self.kernel_size = g.in_channels, g.out_channels, g.kernel
        self.stride, self.padding, self.dilation, self.padding_mode = g.stride, g.padding, g.dilation, g.padding_mode
        self.implementation: Implementation = "auto"

        m, n = self.in_channels, self.out_channels
        self.weight_1x1 = nn.Parameter(torch.empty(n, m, 1, 1, device=device, dtype=dtype))
        self.weight_ring = nn.Parameter(torch.empty(n, m // self.p, g.taps - 1, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(n, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        """Weights of one filter: M/P K^2 + M - M/P."""
        g = self.geometry
        return g.in_channels + g.in_channels // self.p * (g.taps - 1)

    def reset_parameters(self) -> None:
        """Draws weights and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as Conv2d does, with the true fan-in."""
        bound = 1 / math.sqrt(self.fan_in)
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input`, [batch, M, H, W] or [M, H, W]."""
        validation.check_input(input, self.geometry)
        return api.run(input, self.weight_1x1, self.weight_ring, self.bias, self.spec, self.implementation)

    def choice(self) -> Choice:
        """Which implementation serves this layer where its weights are and in their dtype, and why."""
        weight = self.weight_1x1
        return api.choose_implementation(self.implementation, spec=self.spec, device=weight.device, dtype=weight.dtype)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """The weight [N, M, K_h, K_w] of the Conv2d that computes the same, zeros where there is no tap."""
        g = self.geometry
        own = self.class_channels().to(self.weight_ring.device)
        ring = self.weight_ring.new_zeros(g.out_channels, g.in_channels, g.taps - 1)
        ring.scatter_(1, own.unsqueeze(-1).expand_as(self.weight_ring), self.weight_ring)
        return window(ring, self.weight_1x1[..., 0, 0], g.kernel)

    def class_channels(self) -> Tensor:
        """For each filter the channels of its class, ascending: [N, M/P] int64 on the CPU."""
        return torch.tensor(own_channels(self.spec))

    def extra_repr(self) -> str:
        """As Conv2d prints itself, with p and arrangement."""
        g = self.geometry
        parts = [f"{g.in_channels}, {g.out_channels}, kernel_size={g.kernel}, stride={g.stride}"]
        if g.padding != (0, 0):
            parts.append(f"padding={g.padding}")
        if g.dilation != (1, 1):
            parts.append(f"dilation={g.dilation}")
        if not g.bias:
            parts.append("bias=False")
        if g.padding_mode != "zeros":
            parts.append(f"padding_mode={g.padding_mode}")
        return ", ".join([*parts, f"p={self.p}", f"arrangement={self.arrangement}"])


def use_implementation(model: nn.Module, implementation: Implementation) -> None:
    """Makes every HetConv2d in `model` run so: "reference" is class by class, the readable form of the layer's work."""
    for module in model.modules():
        if isinstance(module, HetConv2d):
            module.implementation = implementation
