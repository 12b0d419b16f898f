"""The layer with what follows it as one kernel on the CPU, for inference: one pass, nothing between input and output.

`cpu_kernel.cpp` is the kernel, `cpu_build.py` compiles it. Filters are taken in vectors of the processor's lanes; a
vector that spans several classes reads the K x K taps of all their channels, with zeros where a filter has none. Where
an input is infinite, those zeros make NaN of it.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hetconv_cli.arrangement import classes
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.geometry import Geometry, Size
from hetconv_cli.ops.hetconv2d.cpu_build import cpu_library
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec
from hetconv_cli.ops.hetconv2d.taps import pad_as

WIDEST_DILATION = 4  # a strip holds the rows between the taps, too: beyond, oneDNN is the faster one
MOST_CLASSES = 8  # of a vector; with more, most of what it multiplies are zeros


def serves_layer(spec: HetConvSpec, weight: Tensor) -> bool:
    """Whether layers like this can be packed: float32 on the CPU, blocked, and a compiler at hand.

    Not those in which other implementations are known to be faster.
    """
    g, library = spec.geometry, cpu_library().library
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (spec.arrangement == "blocked" or spec.p == 1)
        and max(g.dilation) <= WIDEST_DILATION
        and library is not None
        and spec.p * library.hetconv_lanes() <= MOST_CLASSES * g.out_channels
    )


def serves_input(input: Tensor) -> bool:
    """Whether the kernel takes this input: images in any memory format."""
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and input.dim() == 4
        and not torch.is_autocast_enabled("cpu")
    )


def pack(weight_1x1: Tensor, weight_ring: Tensor, spec: HetConvSpec) -> Tensor:
    """The weights in the order in which the kernel reads them, one dimension; shapes of the others as in `hetconv2d`.

    For each vector of filters: the centre taps [M, lanes], then [K_h*K_w - 1, channels of its classes, lanes].
    """
    filters, part, lanes = len(weight_ring), weight_ring.shape[1], int(_library().hetconv_lanes())
    starts = [of_class * part for of_class in classes(filters, spec.p, "blocked")]
    packed = []
    for begin in range(0, filters, lanes):
        mine = range(begin, min(begin + lanes, filters))
        first, stop = starts[mine[0]], starts[mine[-1]] + part
        centre = weight_1x1.new_zeros(weight_1x1.shape[1], lanes)
        centre[:, : len(mine)] = weight_1x1[mine.start : mine.stop].flatten(1).t()
        ring = weight_ring.new_zeros(weight_ring.shape[2], stop - first, lanes)
        for n in mine:
            ring[:, starts[n] - first :, n - begin][:, :part] = weight_ring[n].t()
        packed += [centre.flatten(), ring.flatten()]
    return torch.cat(packed)


def hetconv2d_cpu(
    input: Tensor, packed: Tensor, bias: Tensor | None, spec: HetConvSpec, residual: Tensor | None, *, relu: bool
) -> Tensor:
    """relu(convolution + bias + residual) in channels_last, without gradients; `packed` from `pack`."""
    g, padding = spec.geometry, spec.geometry.padding
    if g.padding_mode != "zeros":
        input, padding = pad_as(input, g), (0, 0)
    output: Tensor = torch.ops.hetconv.cpu_inference(
        input, packed, bias, residual, relu, g.out_channels, spec.p, g.kernel, g.stride, padding, g.dilation
    )
    return output


def _library() -> ctypes.CDLL:
    built = cpu_library()
    if built.library is None:
        raise HetconvError(f"the CPU kernel cannot run here: {built.problem}")
    return built.library


def _cpu_inference(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    filters: int,
    p: int,
    *window: Sequence[int],
) -> Tensor:
    library, threads = _library(), torch.get_num_threads()
    call = _call(library, tuple(x.shape), x.stride(), filters, p, tuple(map(tuple, window)), relu, threads)
    output = _empty(x, call.output)
    if output.numel() == 0:
        return output
    fits = packed.numel() == call.packed_floats and packed.is_contiguous()
    if not (fits and x.dtype == packed.dtype == torch.float32):  # the kernel would read what is not there
        raise HetconvError(
            f"packed weights must be {call.packed_floats} contiguous floats here, and the input float32; got"
            f" {packed.numel()} of {packed.dtype} and {x.dtype}: pack them anew"
        )
    if residual is not None:
        residual = residual.to(x.dtype).expand_as(output).contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.to(x.dtype).expand(filters).contiguous()
    tensors = (x, packed, bias, residual, output)
    status = library.hetconv_forward(
        call.layer, *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors)
    )
    if status != 0:
        raise MemoryError("the CPU kernel has no memory for a strip of the input")
    return output


class _Call(NamedTuple):
    """What follows from the numbers of a call."""

    output: tuple[int, int, int, int]
    layer: ctypes.Array[ctypes.c_int64]  # as the struct Layer in cpu_kernel.cpp
    packed_floats: int


@lru_cache(maxsize=4096)  # layers of a few networks: a small layer takes no longer than these few lines
def _call(
    library: ctypes.CDLL,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    filters: int,
    p: int,
    window: tuple[Size, Size, Size, Size],
    relu: bool,
    threads: int,
) -> _Call:
    output = _output_size(shape, filters, window)
    sizes = (*shape[:2], filters, p, *shape[2:], *output[2:])
    numbers = (*sizes, *(number for pair in window for number in pair), *steps, relu, threads)
    layer = (ctypes.c_int64 * len(numbers))(*numbers)
    return _Call(output, layer, library.hetconv_packed_floats(layer))


def _output_size(shape: Sequence[int], filters: int, window: Sequence[Sequence[int]]) -> tuple[int, int, int, int]:
    kernel, stride, padding, dilation = ((rows, columns) for rows, columns in window)
    rows, columns = Geometry(shape[1], filters, kernel, stride, padding, dilation).output_size(shape[2], shape[3])
    if rows < 1 or columns < 1:
        raise ArgumentError(f"the window is larger than the padded input: the output would be {rows} x {columns}")
    return shape[0], filters, rows, columns


def _empty(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _output_shape(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    filters: int,
    p: int,
    *window: Sequence[int],
) -> Tensor:
    return _empty(x, _output_size(x.shape, filters, window))


torch.library.define(
    "hetconv::cpu_inference",
    "(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, bool relu, int filters, int p, int[] kernel, "
    "int[] stride, int[] padding, int[] dilation) -> Tensor",
    tags=torch.Tag.flexible_layout,  # it reads any strides: a compiler need not copy
)
torch.library.impl("hetconv::cpu_inference", "cpu", _cpu_inference)
torch.library.register_fake("hetconv::cpu_inference", _output_shape)
