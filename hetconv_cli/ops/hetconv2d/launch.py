"""What a launch of the fused kernel passes to it. Plain integers, no torch, no triton.

What belongs to a layer is a compile-time constant, so that divisions and branches vanish; what belongs to a batch or an
image size is a run-time number, so that a new size compiles nothing.
"""

from hetconv_cli.ops.hetconv2d.layout import Layout, Tile, ceil_div
from hetconv_cli.ops.hetconv2d.walk import Walk

INT32_MAX = 2**31 - 1
# grid, run-time numbers, compile-time constants, compiler options
Launch = tuple[tuple[int, ...], tuple[int, ...], dict[str, object], dict[str, int | bool]]


def convolve_arguments(
    sizes: tuple[int, ...], *, layout: Layout, walk: Walk, tile: Tile, precision: str, relu: bool
) -> Launch:
    """Grid, run-time numbers, compile-time constants and compiler options of a `convolve`.

    `sizes`: batch, height and width of the input, height and width of the output.
    """
    batch, in_h, in_w, out_h, out_w = sizes
    rows, columns, centre = walk.rows, walk.columns, walk.centre
    pixels = batch * rows.size * columns.size
    chunks = ceil_div(layout.ring, tile.block_k)
    dense_steps = ceil_div(layout.inputs, tile.block_k) if centre else 0
    blocks = ceil_div(layout.rows, tile.block_n)
    # Outside of the input only masked pixels are addressed, so wrapping numbers do no harm there.
    largest = max(
        batch * in_h * in_w * layout.inputs, batch * out_h * out_w * layout.outputs, layout.outputs * layout.width
    )
    constants = {
        **_shared_constants(layout, blocks, precision, tile),
        "RING_TAPS": walk.ring_taps,
        "TAPS_W": max(1, columns.taps),
        "FIRST_TAP_H": rows.first_tap,
        "FIRST_TAP_W": columns.first_tap,
        "TAP_STEP_H": rows.tap_step,
        "TAP_STEP_W": columns.tap_step,
        "KERNEL_W": walk.kernel[1],
        "KERNEL_CENTRE": walk.kernel[0] * walk.kernel[1] // 2,
        "HAS_CENTRE": centre is not None,
        "CENTRE_H": centre[0] if centre else 0,
        "CENTRE_W": centre[1] if centre else 0,
        "STEP_H": rows.step,
        "STEP_W": columns.step,
        "OFFSET_H": rows.offset,
        "OFFSET_W": columns.offset,
        "DELTA_H": rows.delta,
        "DELTA_W": columns.delta,
        "OUT_STEP_H": rows.out_step,
        "OUT_STEP_W": columns.out_step,
        "OUT_FIRST_H": rows.out_first,
        "OUT_FIRST_W": columns.out_first,
        "STEPS": walk.ring_taps * chunks + dense_steps,
        "WHOLE_K": _whole_steps(layout, tile.block_k),
        "RELU": relu,
        "WIDE": largest > INT32_MAX,
        "TAPS_INSIDE": tile.taps_inside,
    }
    grid = (ceil_div(pixels, tile.block_m) * layout.groups * blocks,)
    options = _options(tile)
    return grid, (pixels, rows.size, columns.size, in_h, in_w, out_h, out_w), constants, options


def weight_gradient_arguments(
    sizes: tuple[int, ...], shares: int, *, layout: Layout, walk: Walk, tile: Tile, precision: str
) -> Launch:
    """As `convolve_arguments`, for a `weight_gradient`."""
    batch, in_h, in_w, out_h, out_w = sizes
    pixels = batch * out_h * out_w
    centre = (walk.kernel[0] // 2, walk.kernel[1] // 2)
    blocks = ceil_div(layout.rows, tile.block_n)
    steps = walk.ring_taps * ceil_div(layout.ring, tile.block_k) + ceil_div(layout.inputs, tile.block_k)
    pixels_each = ceil_div(ceil_div(pixels, shares), tile.block_m) * tile.block_m
    largest = max(batch * in_h * in_w * layout.inputs, pixels * layout.outputs, shares * layout.outputs * layout.width)
    constants = {
        **_shared_constants(layout, blocks, precision, tile),
        "RING_TAPS": walk.ring_taps,
        "KERNEL_W": walk.kernel[1],
        "CENTRE_H": centre[0],
        "CENTRE_W": centre[1],
        "STEP_H": walk.rows.step,
        "STEP_W": walk.columns.step,
        "OFFSET_H": walk.rows.offset,
        "OFFSET_W": walk.columns.offset,
        "DELTA_H": walk.rows.delta,
        "DELTA_W": walk.columns.delta,
        "WIDE": largest > INT32_MAX,
    }
    options = _options(tile)
    grid = (layout.groups * blocks * steps, shares)
    return grid, (pixels, pixels_each, in_h, in_w, out_h, out_w), constants, options


def _shared_constants(layout: Layout, blocks: int, precision: str, tile: Tile) -> dict[str, object]:
    return {
        "INPUTS": layout.inputs,
        "OUTPUTS": layout.outputs,
        "P": layout.p,
        "MERGE": layout.merge,
        "SHIFTED": layout.shifted,
        "RING": layout.ring,
        "RING_WIDTH": layout.ring_width,
        "BLOCKS": blocks,
        "COLUMNS": layout.groups * blocks,
        "PRECISION": precision,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }


def _options(tile: Tile) -> dict[str, int | bool]:
    # sums are kept in registers between products, so fused multiply-adds only make them more exact
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def _whole_steps(layout: Layout, block_k: int) -> bool:
    """Whether every step has `block_k` channels, in every group."""
    groups = {len(layout.group(layout.inputs, index)) for index in range(layout.groups)}
    return layout.inputs % block_k == 0 and len(groups) == 1 and layout.ring % block_k == 0
