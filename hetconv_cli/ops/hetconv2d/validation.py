"""Checks what a caller passes, and writes it out as a `Geometry`. Free functions, no state."""

from collections.abc import Sequence
from operator import index
from typing import TypeVar

from torch import Tensor

from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import PADDING_MODES, Geometry, Size, resolve_padding
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec, make_spec

IntOrPair = int | Sequence[int]
Word = TypeVar("Word", bound=str)


def pair(value: object, name: str, least: int) -> Size:
    """`value` as (height, width), both at least `least`."""
    both = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    numbers = [number for number in map(whole, both) if number is not None and number >= least]
    if len(both) != 2 or len(numbers) != 2:
        raise ArgumentError(f"{name} must be an integer >= {least}, or a pair of them; got {value!r}")
    return numbers[0], numbers[1]


def whole(value: object) -> int | None:
    """`value` as an int where it is an integer of any library's, a bool apart; else None."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    return index(value)


def check_count(value: object, name: str) -> int:
    """`value` as a positive integer."""
    number = whole(value)
    if number is None or number < 1:
        raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
    return number


def check_part(p: object, in_channels: int) -> int:
    """The part as an integer that divides the input channels; "pc" is all of them."""
    if isinstance(p, str) and p.lower() == "pc":
        return in_channels
    part = whole(p)
    if part is None or part < 1:
        raise ArgumentError(f"p must be a positive integer or 'pc', got {p!r}")
    if in_channels % part:
        raise ArgumentError(f"`in_channels` (={in_channels}) must be divisible by `p` (={part})")
    return part


def check_word(value: object, name: str, known: Sequence[Word]) -> Word:
    """`value` as one of the `known` words."""
    for word in known:
        if value == word:
            return word
    raise ArgumentError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def geometry(
    in_channels: object,
    out_channels: object,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    *,
    bias: bool,
    padding_mode: object,
    groups: int = 1,
) -> Geometry:
    """The geometry that Conv2d's arguments describe, for an odd kernel.

    Raises:
        ArgumentError: an even kernel, a number out of range, an unknown word; names argument, expectation and value.
    """
    kernel = pair(kernel_size, "kernel_size", 1)
    if not all(k % 2 for k in kernel):
        raise ArgumentError(f"kernel_size must be odd, so that the window has a centre; got {kernel_size!r}")
    strides = pair(stride, "stride", 1)
    dilations = pair(dilation, "dilation", 1)
    pads = padding if isinstance(padding, str) else pair(padding, "padding", 0)
    try:
        resolved = resolve_padding(pads, kernel, strides, dilations)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return Geometry(
        in_channels=check_count(in_channels, "in_channels"),
        out_channels=check_count(out_channels, "out_channels"),
        kernel=kernel,
        stride=strides,
        padding=resolved,
        dilation=dilations,
        groups=groups,
        bias=bias,
        padding_mode=check_word(padding_mode, "padding_mode", PADDING_MODES),
    )


def spec(
    in_channels: object,
    out_channels: object,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    *,
    bias: bool,
    padding_mode: object,
    p: object,
    arrangement: object,
) -> HetConvSpec:
    """The HetConv that Conv2d's arguments, `p` and `arrangement` describe.

    Raises:
        ArgumentError: as `geometry` does; in_channels not divisible by p; an unknown arrangement.
    """
    facts = geometry(
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias, padding_mode=padding_mode
    )
    part = check_part(p, facts.in_channels)
    return make_spec(facts, part, check_word(arrangement, "arrangement", ARRANGEMENTS))


def channels_of(weight_1x1: Tensor) -> Size:
    """Filters and input channels of a layer with these 1 x 1 weights."""
    if weight_1x1.dim() != 4:
        raise ArgumentError(f"weight_1x1 must have shape [N, M, 1, 1], got {list(weight_1x1.shape)}")
    return weight_1x1.shape[0], weight_1x1.shape[1]


def check_shapes(
    input: Tensor, weight_1x1: Tensor, weight_ring: Tensor, bias: Tensor | None, spec: HetConvSpec
) -> None:
    """Raises ArgumentError unless the tensors have the shapes that `hetconv2d` documents."""
    g = spec.geometry
    n, m = g.out_channels, g.in_channels
    expected = {
        "weight_1x1": (weight_1x1, (n, m, 1, 1)),
        "weight_ring": (weight_ring, (n, m // spec.p, g.taps - 1)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ArgumentError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ArgumentError(f"bias must have shape [{n}], got {list(bias.shape)}")
    check_input(input, g)


def check_input(input: Tensor, g: Geometry) -> None:
    """Raises ArgumentError unless `input` has the layer's channels, with or without a batch dimension."""
    if input.dim() not in (3, 4) or input.shape[-3] != g.in_channels:
        wanted = f"[batch, {g.in_channels}, H, W] or [{g.in_channels}, H, W]"
        raise ArgumentError(f"input must have shape {wanted}, got {list(input.shape)}")
