"""The fused kernel as operators of torch: schemas, shapes for the compiler, gradients. Imports no triton.

`hetconv::fused` is the layer on packed weights and can be differentiated once; `hetconv::fused_inference` has an
epilogue and no gradient; the other two are the gradients. Inputs in any memory format are read as channels_last
(copied where they are not), and every image that comes out is channels_last.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.geometry import Geometry, Size
from hetconv_cli.ops.hetconv2d.layout import Layout, Tile, choose_gradient_tile, choose_shares, choose_tile
from hetconv_cli.ops.hetconv2d.measured import lookup
from hetconv_cli.ops.hetconv2d.packing import pack_transposed
from hetconv_cli.ops.hetconv2d.walk import forward_walk, gradient_walks

MOST_PIXELS = 2**31 - 1
_NUMBERS = "int[] kernel, int[] stride, int[] padding, int[] dilation, int p, int merge, bool shifted"


class Numbers(NamedTuple):
    """The tail of every schema: what a call is about besides its tensors."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    p: int
    merge: int
    shifted: bool

    def geometry(self, in_channels: int, out_channels: int) -> Geometry:
        """The convolution of these channels."""
        return Geometry(
            in_channels, out_channels, _pair(self.kernel), _pair(self.stride), _pair(self.padding), _pair(self.dilation)
        )

    def layout(self, in_channels: int, out_channels: int) -> Layout:
        """How the kernel cuts it."""
        taps = self.kernel[0] * self.kernel[1]
        return Layout(in_channels, out_channels, self.p, self.merge, self.shifted, taps)


def _pair(numbers: Sequence[int]) -> Size:
    return numbers[0], numbers[1]


torch.library.define("hetconv::fused", f"(Tensor x, Tensor packed, Tensor? bias, {_NUMBERS}) -> Tensor")
torch.library.define(
    "hetconv::fused_inference",
    f"(Tensor x, Tensor packed, Tensor? scale, Tensor? shift, Tensor? residual, bool relu, {_NUMBERS}) -> Tensor",
)
torch.library.define(
    "hetconv::fused_input_gradient",
    f"(Tensor dy, Tensor packed, SymInt channels, SymInt height, SymInt width, {_NUMBERS}) -> Tensor",
)
torch.library.define("hetconv::fused_weight_gradient", f"(Tensor dy, Tensor x, {_NUMBERS}) -> Tensor")


def _fused(x: Tensor, packed: Tensor, bias: Tensor | None, *numbers: Any) -> Tensor:
    return _fused_inference(x, packed, None, bias, None, False, *numbers)


def _fused_inference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    *numbers: Any,
) -> Tensor:
    from hetconv_cli.ops.hetconv2d import triton_kernels

    asked = Numbers(*numbers)
    geometry, layout = asked.geometry(x.shape[1], len(packed)), asked.layout(x.shape[1], len(packed))
    out = _output(x, packed, asked)
    pixels, row = _pixels(out), lookup(x.device, x.dtype, geometry, asked.p)
    with _on(x):
        triton_kernels.convolve(
            _last(x),
            packed.contiguous(),
            out,
            layout=layout,
            walk=forward_walk(geometry, (out.shape[2], out.shape[3])),
            tile=row.tile if row else choose_tile(layout, pixels, x.element_size()),
            precision=_precision(x),
            scale=scale,
            shift=shift,
            residual=None if residual is None else _last(residual),
            relu=relu,
        )
    return out


def _input_gradient(dy: Tensor, packed: Tensor, channels: int, height: int, width: int, *numbers: Any) -> Tensor:
    from hetconv_cli.ops.hetconv2d import triton_kernels

    asked = Numbers(*numbers)
    layout = asked.layout(channels, dy.shape[1])
    back = layout.transposed()
    weights, dy = pack_transposed(packed, layout), _last(dy)
    dx = _empty_last(dy, (len(dy), channels, height, width))
    walks = gradient_walks(asked.geometry(channels, dy.shape[1]), (height, width))
    tile: Tile = choose_tile(back, _pixels(dx) // len(walks), dy.element_size())
    with _on(dy):
        for walk in walks:
            triton_kernels.convolve(dy, weights, dx, layout=back, walk=walk, tile=tile, precision=_precision(dy))
    return dx


def _weight_gradient(dy: Tensor, x: Tensor, *numbers: Any) -> Tensor:
    from hetconv_cli.ops.hetconv2d import triton_kernels

    asked = Numbers(*numbers)
    layout = asked.layout(x.shape[1], dy.shape[1])
    tile = choose_gradient_tile(layout, x.element_size())
    shares = choose_shares(layout, tile, _pixels(dy))
    sums = torch.empty((shares, layout.outputs, layout.width), dtype=torch.float32, device=x.device)
    walk = forward_walk(asked.geometry(x.shape[1], dy.shape[1]), (dy.shape[2], dy.shape[3]))
    with _on(x):
        triton_kernels.weight_gradient(
            _last(x), _last(dy), sums, layout=layout, walk=walk, tile=tile, precision=_precision(x)
        )
    return sums.sum(dim=0).to(x.dtype)


def _output(x: Tensor, packed: Tensor, asked: Numbers) -> Tensor:
    height, width = asked.geometry(x.shape[1], packed.shape[0]).output_size(x.shape[2], x.shape[3])
    if height < 1 or width < 1:
        raise ArgumentError(f"the window is larger than the padded input: the output would be {height} x {width}")
    return _empty_last(x, (x.shape[0], packed.shape[0], height, width))


def _empty_last(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def _pixels(image: Tensor) -> int:
    """Pixels of the whole batch; the kernels count them in 32 bits."""
    pixels = image.shape[0] * image.shape[2] * image.shape[3]
    if pixels > MOST_PIXELS:
        raise ArgumentError(f"batch x height x width must be at most {MOST_PIXELS}, got {pixels}")
    return pixels


def _precision(tensor: Tensor) -> str:
    """Of float32 products: what the caller allows cuDNN's convolutions (`torch.backends.cudnn.conv`)."""
    allowed: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if tensor.is_cuda and allowed == "tf32" else "ieee"


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _fused_shape(x: Tensor, packed: Tensor, bias: Tensor | None, *numbers: Any) -> Tensor:
    return _output(x, packed, Numbers(*numbers))


def _fused_inference_shape(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    *numbers: Any,
) -> Tensor:
    return _output(x, packed, Numbers(*numbers))


def _input_gradient_shape(dy: Tensor, packed: Tensor, channels: int, height: int, width: int, *numbers: Any) -> Tensor:
    return _empty_last(dy, (dy.shape[0], channels, height, width))


def _weight_gradient_shape(dy: Tensor, x: Tensor, *numbers: Any) -> Tensor:
    layout = Numbers(*numbers).layout(x.shape[1], dy.shape[1])
    return x.new_empty((layout.outputs, layout.width))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, _, *ctx.numbers = inputs
    ctx.save_for_backward(x, packed)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, packed = ctx.saved_tensors
    needs_x, needs_weights, needs_bias = ctx.needs_input_grad[:3]
    operators = torch.ops.hetconv
    dx = operators.fused_input_gradient(dy, packed, *x.shape[1:], *ctx.numbers) if needs_x else None
    dw = operators.fused_weight_gradient(dy, x, *ctx.numbers) if needs_weights else None
    db = dy.sum(dim=(0, 2, 3)) if needs_bias else None
    return dx, dw, db, *(None for _ in Numbers._fields)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise HetconvError(
        "the fused kernel's gradient and its inference form have no gradient of their own; "
        "implementation='grouped' has one of every order"
    )


for name, kernel, shape in (
    ("fused", _fused, _fused_shape),
    ("fused_inference", _fused_inference, _fused_inference_shape),
    ("fused_input_gradient", _input_gradient, _input_gradient_shape),
    ("fused_weight_gradient", _weight_gradient, _weight_gradient_shape),
):
    torch.library.impl(f"hetconv::{name}", ("cuda", "cpu"), kernel)
    torch.library.register_fake(f"hetconv::{name}", shape)
for name in ("fused_inference", "fused_input_gradient", "fused_weight_gradient"):
    torch.library.register_autograd(f"hetconv::{name}", _refuse)
torch.library.register_autograd("hetconv::fused", _gradients, setup_context=_remember)
