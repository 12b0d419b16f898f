"""The facts of one convolution: channels, kernel, stride, padding, dilation. Plain data, no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

Size = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)


@dataclass(frozen=True)
class Geometry:
    """A two-dimensional convolution as `torch.nn.Conv2d` describes it, with every pair written out.

    `padding` is in pixels per side; 'same' and 'valid' are resolved by `resolve_padding` before.
    """

    in_channels: int
    out_channels: int
    kernel: Size
    stride: Size = (1, 1)
    padding: Size = (0, 0)
    dilation: Size = (1, 1)
    groups: int = 1
    bias: bool = True
    padding_mode: PaddingMode = "zeros"

    @property
    def taps(self) -> int:
        """Positions of the kernel window, K_h * K_w."""
        return self.kernel[0] * self.kernel[1]

    @property
    def weights(self) -> int:
        """Weights of the standard convolution, without biases."""
        return self.out_channels * (self.in_channels // self.groups) * self.taps

    @property
    def is_odd(self) -> bool:
        """Whether the window has a centre tap."""
        return all(k % 2 == 1 for k in self.kernel)

    def output_size(self, height: int, width: int) -> Size:
        """Height and width of the output for an input of `height` x `width`."""
        rows, columns = (
            (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1
            for size, pad, dilation, k, stride in zip(
                (height, width), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return rows, columns

    def __str__(self) -> str:
        usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        unusual = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        parts = [f"{name} {_short(value)}" for name, value in unusual.items()]
        if not self.bias:
            parts.append("no bias")
        return ", ".join([f"{_short(self.kernel)}, {self.in_channels} -> {self.out_channels}", *parts])


def _short(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def resolve_padding(padding: str | Size, kernel: Size, stride: Size, dilation: Size) -> Size:
    """Pixels per side for a padding given as numbers, 'same' or 'valid', for an odd kernel.

    Raises:
        ValueError: for another word, or 'same' with a stride (as `torch.nn.Conv2d` does), or a negative number.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0)
        if padding != "same":
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got stride {stride}")
        return (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    if min(padding) < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    return padding
