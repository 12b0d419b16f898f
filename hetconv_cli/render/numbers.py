"""Numbers as people read them."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["mac", "flops"]


@dataclass(frozen=True)
class Scale:
    """A unit for one column: everything in it is divided by `divisor` and shown with `digits` decimals."""

    divisor: float
    name: str
    digits: int

    def show(self, macs: int) -> str:
        """A count of MACs in this unit."""
        return f"{macs / self.divisor:,.{self.digits}f}"


def scale_for(macs: int, unit: Unit = "mac") -> Scale:
    """The unit in which `macs` has one to three digits before the point. FLOPs are two for each MAC."""
    factor = 2 if unit == "flops" else 1
    word = "FLOPs" if unit == "flops" else "MAC"
    for power, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if macs * factor >= power:
            return Scale(power / factor, prefix + word, 3)
    return Scale(1 / factor, word, 0)


def count(number: int) -> str:
    """A count with its magnitude: 693.6 M, 3.664 G, 512."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= power:
            return f"{number / power:,.3f} {prefix}"
    return f"{number:,}"


def percent(new: int, old: int) -> str:
    """The change from `old` to `new`, signed."""
    return f"{100 * (new - old) / old:+.2f} %" if old else "-"


def size(bytes_: int) -> str:
    """A file's size in MB (10^6 bytes), or kB where that is too coarse."""
    return f"{bytes_ / 1e6:.1f} MB" if bytes_ >= 1e5 else f"{bytes_ / 1e3:.1f} kB"
