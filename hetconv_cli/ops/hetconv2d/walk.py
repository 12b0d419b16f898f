"""Which taps a launch visits, and where each finds its pixel. Plain integers, no torch, no triton.

One kernel computes the layer and its input gradient: on a grid of output pixels (u, v), tap (a, b) reads the pixel

    row = u * step + offset + a * delta        (columns alike)

and the result for (u, v) is stored at row u * out_step + out_first. The layer itself is one such walk. Its input
gradient is one walk for each residue of the input's rows and columns by the stride: the taps of a residue are every
`tap_step`-th of the window, so no product is with a pixel that the stride skipped.
"""

from dataclasses import dataclass

from hetconv_cli.geometry import Geometry, Size


@dataclass(frozen=True)
class Axis:
    """One axis of a walk, rows or columns."""

    size: int  # output pixels visited
    taps: int  # taps visited
    first_tap: int
    tap_step: int
    step: int
    offset: int
    delta: int
    out_step: int = 1
    out_first: int = 0

    def place_of(self, tap: int) -> int | None:
        """Which of the visited taps is number `tap` of the window; None if it is not visited."""
        place, rest = divmod(tap - self.first_tap, self.tap_step)
        return place if rest == 0 and 0 <= place < self.taps else None


@dataclass(frozen=True)
class Walk:
    """What one launch visits."""

    rows: Axis
    columns: Axis
    kernel: Size

    @property
    def centre(self) -> Size | None:
        """The window's centre among the visited taps, if it is there."""
        row, column = self.rows.place_of(self.kernel[0] // 2), self.columns.place_of(self.kernel[1] // 2)
        return None if row is None or column is None else (row, column)

    @property
    def ring_taps(self) -> int:
        """Visited taps without the centre."""
        return self.rows.taps * self.columns.taps - (self.centre is not None)


def forward_walk(geometry: Geometry, output: Size) -> Walk:
    """The walk that computes the layer; `output` is its height and width."""
    g = geometry
    rows, columns = (
        Axis(size, taps, 0, 1, step, -pad, dilation)
        for size, taps, step, pad, dilation in zip(output, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    )
    return Walk(rows, columns, g.kernel)


def gradient_walks(geometry: Geometry, input: Size) -> list[Walk]:
    """The walks that compute the gradient of an input of this height and width; together they visit every pixel."""
    g = geometry
    rows, columns = (
        [_residue(size, first, taps, stride, pad, dilation) for first in range(min(stride, size))]
        for size, taps, stride, pad, dilation in zip(input, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    )
    return [Walk(row, column, g.kernel) for row in rows for column in columns]


def _residue(size: int, first: int, taps: int, stride: int, pad: int, dilation: int) -> Axis:
    """Input pixels u * stride + first. Tap k met them at output (u * stride + first + pad - k dilation) / stride."""
    met = [k for k in range(taps) if (first + pad - k * dilation) % stride == 0]
    first_tap = met[0] if met else 0
    tap_step = met[1] - met[0] if len(met) > 1 else taps  # the residues of k dilation repeat, so the steps are equal
    return Axis(
        size=len(range(first, size, stride)),
        taps=len(met),
        first_tap=first_tap,
        tap_step=tap_step,
        step=1,
        offset=(first + pad - first_tap * dilation) // stride,
        delta=-(tap_step * dilation // stride),
        out_step=stride,
        out_first=first,
    )
