"""Names beside the points of a plot, so that all can be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_GAP = 4  # from a point to its label, in typographic points
_MARKER = 3  # half the width of a marker
_AIR = 3  # between two labels
# Where a label may stand, as it is seen from its point: right, left or in the middle; above, below or beside.
_ABOVE = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_BELOW = tuple((x, -y) for x, y in _ABOVE)
_ALIGNED_X = {1: "left", 0: "center", -1: "right"}
_ALIGNED_Y = {1: "bottom", 0: "center", -1: "top"}


@dataclass(frozen=True)
class Label:
    """A point's name; `x` and `y` in data coordinates, `above` is where it stands if there is room."""

    text: str
    x: float
    y: float
    color: str
    above: bool


def write_labels(axes: Any, labels: Sequence[Label], fontsize: float) -> list[Any]:
    """Writes each label in the first place beside its point where it covers no point and no label before it.

    Call it when the points are drawn and the figure has its final layout. A label for which there is no such place
    stands in the place that it likes best. Returns matplotlib's annotations.
    """
    from matplotlib.transforms import Bbox

    unit = axes.figure.dpi / 72
    points = axes.transData.transform([(label.x, label.y) for label in labels]) if labels else []
    taken = [Bbox.from_extents(x, y, x, y).padded(_MARKER * unit) for x, y in points]
    return [_write(axes, label, fontsize, taken) for label in labels]


def _write(axes: Any, label: Label, fontsize: float, taken: list[Any]) -> Any:
    """Writes one label and adds its box to those `taken`."""
    at = (label.x, label.y)
    text = axes.annotate(label.text, at, (0, 0), textcoords="offset points", fontsize=fontsize, color=label.color)
    text.set_in_layout(False)  # the layout is final
    first, *others = _ABOVE if label.above else _BELOW
    for place in (first, *others, first):
        box = _move(text, place)
        if not box.count_overlaps(taken) and _is_inside(box, axes.bbox):
            break
    taken.append(box.padded(_AIR * axes.figure.dpi / 72))
    return text


def _move(text: Any, place: tuple[int, int]) -> Any:
    """The box, in pixels, that the text fills there."""
    x, y = place
    text.set(position=(x * _GAP, y * _GAP), ha=_ALIGNED_X[x], va=_ALIGNED_Y[y])
    return text.get_window_extent()


def _is_inside(box: Any, frame: Any) -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
