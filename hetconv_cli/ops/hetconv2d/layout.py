"""How the fused kernel cuts a layer into matrix products. Plain integers, no torch, no triton.

Channels and filters stand in the order of their classes here: as they are in a blocked layer, relabelled in a shifted
one. `merge` neighbouring classes make one group, which the kernel treats as one class: its filters read the K x K taps
of all the group's channels, and the weights that the layer does not have are zeros. That executes `merge` times the
K x K work, and is paid because tensor cores take no fewer than 16 filters (Hopper's wgmma at its full rate: 64) and 16
channels at once.
"""

from dataclasses import dataclass, replace

LEAST_FILTERS = 32  # of one group: fewer leave most of a tensor core's instruction empty
LEAST_CHANNELS = 16  # of one group: the shortest matrix product is 16 deep
PROGRAMS = 528  # of one launch, wanted: four for each of a Hopper GPU's 132 multiprocessors


def ceil_div(a: int, b: int) -> int:
    """The quotient a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Layout:
    """A layer as the kernel sees it, forward (`inputs` = M, `outputs` = N) or backward (the other way round).

    Packed weights are [outputs, width]: for each tap of the window but the centre `ring` columns, then `inputs` columns
    for the 1 x 1 part, which holds the centre taps.
    """

    inputs: int
    outputs: int
    p: int
    merge: int
    shifted: bool
    taps: int  # of the whole window, the centre included

    def first(self, count: int, of_class: int) -> int:
        """Where, of `count` channels or filters in class order, those of `of_class` begin."""
        if self.shifted:
            return of_class * (count // self.p) + min(of_class, count % self.p)
        return ceil_div(of_class * count, self.p)

    def group(self, count: int, index: int) -> range:
        """Which of `count` channels or filters in class order make group `index`."""
        start, stop = index * self.merge, min((index + 1) * self.merge, self.p)
        return range(self.first(count, start), self.first(count, stop))

    @property
    def groups(self) -> int:
        """Groups of classes."""
        return ceil_div(self.p, self.merge)

    @property
    def ring(self) -> int:
        """Input channels of the largest group."""
        return max(len(self.group(self.inputs, index)) for index in range(self.groups))

    @property
    def rows(self) -> int:
        """Filters of the largest group."""
        return max(len(self.group(self.outputs, index)) for index in range(self.groups))

    @property
    def ring_width(self) -> int:
        """Columns of the packed weights before the 1 x 1 part."""
        return (self.taps - 1) * self.ring

    @property
    def width(self) -> int:
        """Columns of the packed weights."""
        return self.ring_width + self.inputs

    def transposed(self) -> "Layout":
        """The layout of the input gradient: filters give, channels take."""
        return replace(self, inputs=self.outputs, outputs=self.inputs)


def choose_merge(in_channels: int, out_channels: int, p: int) -> int:
    """Classes to a group: the fewest, in powers of two, that fill the smallest useful matrix product."""
    merge = 1
    while merge < p and (
        out_channels * merge < min(LEAST_FILTERS, out_channels) * p
        or in_channels * merge < min(LEAST_CHANNELS, in_channels) * p
    ):
        merge *= 2
    return min(merge, p)


def executed_weights(layout: Layout) -> int:
    """Weights that the kernel multiplies by for each output pixel, those that the grouping adds included."""
    pairs = (
        len(layout.group(layout.outputs, index)) * len(layout.group(layout.inputs, index))
        for index in range(layout.groups)
    )
    return layout.inputs * layout.outputs + (layout.taps - 1) * sum(pairs)


@dataclass(frozen=True)
class Tile:
    """How one launch is cut.

    Attributes:
        block_m: Output pixels of a program; of a weight gradient, pixels of one step.
        block_n: Filters of a program, all of one group.
        block_k: Input channels of one step.
        warps: Warps of a program.
        stages: Steps whose loads are under way at once.
        taps_inside: Walk the taps of one channel block before the next block, so that neighbouring taps find their
            pixels in the cache; otherwise all channels of one tap.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    taps_inside: bool = False


def choose_tile(layout: Layout, pixels: int, itemsize: int) -> Tile:
    """A tile by rule of thumb, for what no measured table names.

    Args:
        layout: Of the launch.
        pixels: Output pixels, batch included.
        itemsize: Bytes of an element.
    """
    block_n = min(128, max(16, _power_of_two(layout.rows)))
    widest = 64 if itemsize == 2 else 32
    block_k = min((16, 32, 64), key=lambda k: (k > widest, _padded(layout, k), -k))
    columns = layout.groups * ceil_div(layout.rows, block_n)
    few = ceil_div(pixels, 128) * columns < PROGRAMS // 2
    block_m = 64 if few else 128
    return Tile(block_m, block_n, block_k, warps=8 if block_m * block_n >= 128 * 128 else 4, stages=3)


def choose_gradient_tile(layout: Layout, itemsize: int) -> Tile:
    """A tile by rule of thumb for the weight gradient: its products are `block_m` pixels deep."""
    tile = choose_tile(layout, 0, itemsize)
    return replace(tile, block_m=64 if itemsize == 2 else 32, warps=4)


def choose_shares(layout: Layout, tile: Tile, pixels: int) -> int:
    """Into how many shares a weight gradient's pixels are cut: enough programs, none with fewer than 16 steps."""
    steps = (layout.taps - 1) * ceil_div(layout.ring, tile.block_k) + ceil_div(layout.inputs, tile.block_k)
    programs = layout.groups * ceil_div(layout.rows, tile.block_n) * steps
    return max(1, min(ceil_div(PROGRAMS, programs), pixels // (16 * tile.block_m)))


def _padded(layout: Layout, block_k: int) -> int:
    """Columns that a program multiplies when every channel range is filled up to whole steps of `block_k`."""
    return (layout.taps - 1) * ceil_div(layout.ring, block_k) * block_k + ceil_div(layout.inputs, block_k) * block_k


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()
