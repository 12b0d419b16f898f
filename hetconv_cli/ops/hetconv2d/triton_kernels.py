"""The Triton kernels and their launchers. The only file that imports triton; loaded on the first launch.

Launchers take tensors that are already checked, packed and dense in the order pixel by pixel (channels_last), and
write into a tensor that they are given. Every dimension that can overrun a block is masked. Sums are float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from hetconv_cli.ops.hetconv2d.launch import convolve_arguments, weight_gradient_arguments
from hetconv_cli.ops.hetconv2d.layout import Layout, Tile
from hetconv_cli.ops.hetconv2d.walk import Walk


@triton.jit
def _first(of_class, COUNT: tl.constexpr, P: tl.constexpr, SHIFTED: tl.constexpr):
    """`Layout.first`: where, of COUNT channels in class order, those of a class begin."""
    if COUNT % P == 0:
        first = of_class * (COUNT // P)  # the compiler sees what this is a multiple of
    elif SHIFTED:
        first = of_class * (COUNT // P) + tl.minimum(of_class, COUNT % P)
    else:
        first = (of_class * COUNT + P - 1) // P
    return first


@triton.jit
def _step(
    index,
    ring_first,
    ring_last,
    INPUTS: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    RING_TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    FIRST_TAP_H: tl.constexpr,
    FIRST_TAP_W: tl.constexpr,
    TAP_STEP_H: tl.constexpr,
    TAP_STEP_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    KERNEL_CENTRE: tl.constexpr,
    HAS_CENTRE: tl.constexpr,
    CENTRE_H: tl.constexpr,
    CENTRE_W: tl.constexpr,
    TAPS_INSIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What step `index` of the walk multiplies: a tap (a, b), where its channels and its packed columns begin and end.

    First come the ring's taps over the group's own channels, then the 1 x 1 part over all channels.
    """
    CHUNKS: tl.constexpr = (RING + BLOCK_K - 1) // BLOCK_K
    RING_STEPS: tl.constexpr = RING_TAPS * CHUNKS
    DIVISOR: tl.constexpr = RING_TAPS if RING_TAPS > 0 else 1
    if TAPS_INSIDE:
        tap, chunk = index % DIVISOR, index // DIVISOR
    else:
        tap, chunk = index // CHUNKS, index % CHUNKS
    if HAS_CENTRE:
        place = tap + (tap >= CENTRE_H * TAPS_W + CENTRE_W)
    else:
        place = tap
    a, b = place // TAPS_W, place % TAPS_W
    number = (FIRST_TAP_H + a * TAP_STEP_H) * KERNEL_W + FIRST_TAP_W + b * TAP_STEP_W  # in the whole window
    slot = number - (number > KERNEL_CENTRE)
    dense = index - RING_STEPS
    in_ring = dense < 0
    a = tl.where(in_ring, a, CENTRE_H)
    b = tl.where(in_ring, b, CENTRE_W)
    channel = tl.where(in_ring, ring_first + chunk * BLOCK_K, dense * BLOCK_K)
    channel_end = tl.where(in_ring, ring_last, INPUTS)
    column = tl.where(in_ring, slot * RING + chunk * BLOCK_K, RING_WIDTH + dense * BLOCK_K)
    column_end = tl.where(in_ring, (slot + 1) * RING, RING_WIDTH + INPUTS)
    return a, b, channel, channel_end, column, column_end


@triton.jit
def _convolve(
    x_ptr,
    w_ptr,
    y_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    pixels,
    grid_h,
    grid_w,
    in_h,
    in_w,
    out_h,
    out_w,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    P: tl.constexpr,
    MERGE: tl.constexpr,
    SHIFTED: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RING_TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    FIRST_TAP_H: tl.constexpr,
    FIRST_TAP_W: tl.constexpr,
    TAP_STEP_H: tl.constexpr,
    TAP_STEP_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    KERNEL_CENTRE: tl.constexpr,
    HAS_CENTRE: tl.constexpr,
    CENTRE_H: tl.constexpr,
    CENTRE_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    OFFSET_H: tl.constexpr,
    OFFSET_W: tl.constexpr,
    DELTA_H: tl.constexpr,
    DELTA_W: tl.constexpr,
    OUT_STEP_H: tl.constexpr,
    OUT_STEP_W: tl.constexpr,
    OUT_FIRST_H: tl.constexpr,
    OUT_FIRST_W: tl.constexpr,
    STEPS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    RELU: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TAPS_INSIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of output: BLOCK_M pixels by BLOCK_N filters of one group, all products in one loop."""
    WIDTH: tl.constexpr = RING_WIDTH + INPUTS
    program = tl.program_id(0)
    column_tile = program % COLUMNS  # neighbours share the pixels
    group = column_tile // BLOCKS
    first_class = group * MERGE
    last_class = tl.minimum(first_class + MERGE, P)
    ring_first, ring_last = _first(first_class, INPUTS, P, SHIFTED), _first(last_class, INPUTS, P, SHIFTED)
    filters_first, filters_last = _first(first_class, OUTPUTS, P, SHIFTED), _first(last_class, OUTPUTS, P, SHIFTED)

    filters = filters_first + (column_tile % BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)
    filter_exists = filters < filters_last
    pixel = (program // COLUMNS) * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel_exists = pixel < pixels
    v = pixel % grid_w
    u = pixel // grid_w % grid_h
    image = pixel // (grid_w * grid_h)
    row = u * STEP_H + OFFSET_H
    column = v * STEP_W + OFFSET_W
    if WIDE:
        image, filters = image.to(tl.int64), filters.to(tl.int64)
    x_pixel = ((image * in_h + row) * in_w + column) * INPUTS
    w_filter = filters * WIDTH
    inside = tl.arange(0, BLOCK_K)

    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for index in range(STEPS):
        a, b, channel, channel_end, w_column, _ = _step(
            index,
            ring_first,
            ring_last,
            INPUTS,
            RING,
            RING_WIDTH,
            RING_TAPS,
            TAPS_W,
            FIRST_TAP_H,
            FIRST_TAP_W,
            TAP_STEP_H,
            TAP_STEP_W,
            KERNEL_W,
            KERNEL_CENTRE,
            HAS_CENTRE,
            CENTRE_H,
            CENTRE_W,
            TAPS_INSIDE,
            BLOCK_K,
        )
        down, right = a * DELTA_H, b * DELTA_W
        seen = pixel_exists & (row + down >= 0) & (row + down < in_h) & (column + right >= 0) & (column + right < in_w)
        x_at = x_ptr + (x_pixel + (down * in_w + right) * INPUTS)[:, None] + (channel + inside)[None, :]
        w_at = w_ptr + w_filter[:, None] + (w_column + inside)[None, :]
        if WHOLE_K:
            x = tl.load(x_at, mask=seen[:, None], other=0.0)
            w = tl.load(w_at, mask=filter_exists[:, None], other=0.0)
        else:
            channel_exists = channel + inside < channel_end
            x = tl.load(x_at, mask=seen[:, None] & channel_exists[None, :], other=0.0)
            w = tl.load(w_at, mask=filter_exists[:, None] & channel_exists[None, :], other=0.0)
        sums = tl.dot(x, tl.trans(w), sums, input_precision=PRECISION)

    if scale_ptr is not None:
        sums *= tl.load(scale_ptr + filters, mask=filter_exists, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        sums += tl.load(shift_ptr + filters, mask=filter_exists, other=0.0).to(tl.float32)[None, :]
    y_pixel = (image * out_h + u * OUT_STEP_H + OUT_FIRST_H) * out_w + v * OUT_STEP_W + OUT_FIRST_W
    y_at = y_pixel[:, None] * OUTPUTS + filters[None, :]
    exists = pixel_exists[:, None] & filter_exists[None, :]
    if residual_ptr is not None:
        sums += tl.load(residual_ptr + y_at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        sums = tl.where(sums < 0.0, 0.0, sums)  # as torch's: NaN stays NaN
    tl.store(y_ptr + y_at, sums.to(y_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _weight_gradient(
    x_ptr,
    dy_ptr,
    dw_ptr,
    pixels,
    pixels_each,
    in_h,
    in_w,
    out_h,
    out_w,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    P: tl.constexpr,
    MERGE: tl.constexpr,
    SHIFTED: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RING_TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    CENTRE_H: tl.constexpr,
    CENTRE_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    OFFSET_H: tl.constexpr,
    OFFSET_W: tl.constexpr,
    DELTA_H: tl.constexpr,
    DELTA_W: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the packed weights' gradient, BLOCK_N filters by BLOCK_K columns, over one share of the pixels.

    Programs of the second grid axis take a share of the pixels each and write float32 sums of their own.
    """
    WIDTH: tl.constexpr = RING_WIDTH + INPUTS
    program = tl.program_id(0)
    share = tl.program_id(1)
    column_tile = program % COLUMNS
    group = column_tile // BLOCKS
    first_class = group * MERGE
    last_class = tl.minimum(first_class + MERGE, P)
    ring_first, ring_last = _first(first_class, INPUTS, P, SHIFTED), _first(last_class, INPUTS, P, SHIFTED)
    filters_first, filters_last = _first(first_class, OUTPUTS, P, SHIFTED), _first(last_class, OUTPUTS, P, SHIFTED)
    filters = filters_first + (column_tile % BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)
    filter_exists = filters < filters_last
    dw_filter = share * OUTPUTS + filters
    if WIDE:
        dw_filter = dw_filter.to(tl.int64)
    inside = tl.arange(0, BLOCK_K)
    a, b, channel, channel_end, w_column, w_column_end = _step(
        program // COLUMNS,
        ring_first,
        ring_last,
        INPUTS,
        RING,
        RING_WIDTH,
        RING_TAPS,
        KERNEL_W,
        0,
        0,
        1,
        1,
        KERNEL_W,
        CENTRE_H * KERNEL_W + CENTRE_W,
        True,
        CENTRE_H,
        CENTRE_W,
        False,
        BLOCK_K,
    )
    down, right = a * DELTA_H + OFFSET_H, b * DELTA_W + OFFSET_W
    channel_exists = channel + inside < channel_end

    sums = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    start = share * pixels_each
    for at in range(start, tl.minimum(start + pixels_each, pixels), BLOCK_M):
        pixel = at + tl.arange(0, BLOCK_M)
        pixel_exists = pixel < pixels
        row = pixel // out_w % out_h * STEP_H + down
        column = pixel % out_w * STEP_W + right
        image = pixel // (out_w * out_h)
        seen = pixel_exists & (row >= 0) & (row < in_h) & (column >= 0) & (column < in_w)
        if WIDE:
            image = image.to(tl.int64)
            pixel = pixel.to(tl.int64)
        x_at = x_ptr + (((image * in_h + row) * in_w + column) * INPUTS)[:, None] + (channel + inside)[None, :]
        dy_at = dy_ptr + (pixel * OUTPUTS)[:, None] + filters[None, :]
        x = tl.load(x_at, mask=seen[:, None] & channel_exists[None, :], other=0.0)
        dy = tl.load(dy_at, mask=pixel_exists[:, None] & filter_exists[None, :], other=0.0)
        sums = tl.dot(tl.trans(dy), x, sums, input_precision=PRECISION)

    exists = filter_exists[:, None] & (w_column + inside < w_column_end)[None, :]
    tl.store(dw_ptr + (dw_filter * WIDTH)[:, None] + (w_column + inside)[None, :], sums, mask=exists)


def convolve(
    x: Tensor,
    packed: Tensor,
    out: Tensor,
    *,
    layout: Layout,
    walk: Walk,
    tile: Tile,
    precision: str,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Writes into `out` the pixels that `walk` visits: relu(scale * convolution + shift + residual).

    Args:
        x: [batch, inputs, H, W], channels_last.
        packed: [outputs, width], see `Layout`.
        out: [batch, outputs, H_o, W_o], channels_last.
        layout: Classes, channels and filters.
        walk: Taps and pixels.
        tile: How the launch is cut.
        precision: Of float32 products, 'tf32' or 'ieee'.
        scale: [outputs] or None.
        shift: [outputs] or None.
        residual: As `out`, or None.
        relu: Whether negative results become 0.
    """
    pixels = x.shape[0] * walk.rows.size * walk.columns.size
    if not pixels:
        return
    grid, arguments, constants, options = convolve_arguments(
        (x.shape[0], *x.shape[2:], *out.shape[2:]), layout=layout, walk=walk, tile=tile, precision=precision, relu=relu
    )
    _convolve[grid](x, packed, out, scale, shift, residual, *arguments, **constants, **options)


def weight_gradient(
    x: Tensor, dy: Tensor, out: Tensor, *, layout: Layout, walk: Walk, tile: Tile, precision: str
) -> None:
    """Writes into `out`, [shares, outputs, width] float32, the packed weights' gradient, a share of the pixels each.

    Args:
        x: [batch, inputs, H, W], channels_last.
        dy: Gradient of the output, [batch, outputs, H_o, W_o], channels_last.
        out: Sums over its first dimension give the gradient.
        layout: Classes, channels and filters of the forward launch.
        walk: Of the forward launch.
        tile: How the launch is cut.
        precision: Of float32 products, 'tf32' or 'ieee'.
    """
    grid, arguments, constants, options = weight_gradient_arguments(
        (x.shape[0], *x.shape[2:], *dy.shape[2:]),
        len(out),
        layout=layout,
        walk=walk,
        tile=tile,
        precision=precision,
    )
    _weight_gradient[grid](x, dy, out, *arguments, **constants, **options)
