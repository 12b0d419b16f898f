"""Names in a plot: each beside its point, none over another or over a point, as long as there is room."""

from itertools import combinations

import matplotlib as mpl
import pytest

mpl.use("agg")
from matplotlib import pyplot

from hetconv_cli.render.plot_labels import Label, write_labels

# The paper's table 1: MACs in per cent, accuracy. P64_SE lies under P64, and P32_SE beside both.
CROWDED = {
    "P32": (14.45, 93.73),
    "P32_SE": (14.55, 93.41),
    "P64": (13.07, 93.42),
    "P64_SE": (13.14, 93.33),
    "PC_SE": (12.3, 93.08),
    "P1": (100.0, 94.06),
    "DWC_PWC": (12.2, 91.27),
}


@pytest.fixture
def axes():
    figure, axes = pyplot.subplots(figsize=(6.5, 5), layout="constrained")
    yield axes
    pyplot.close(figure)


def written(axes, places, above=lambda name: name.endswith("_SE")):
    """The boxes of the labels and of the points, in pixels, each by its name."""
    axes.plot([x for x, _ in places.values()], [y for _, y in places.values()], marker="o", linestyle="none")
    axes.margins(0.12)
    axes.figure.draw_without_rendering()
    texts = write_labels(axes, [Label(name, x, y, "black", above(name)) for name, (x, y) in places.items()], 7)
    points = {name: axes.transData.transform(place) for name, place in places.items()}
    return {text.get_text(): text.get_window_extent() for text in texts}, points


def test_labels_cover_neither_each_other_nor_a_point(axes):
    axes.set_xscale("log")
    boxes, points = written(axes, CROWDED)
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    covered = [(label, point) for label in boxes for point in points if boxes[label].contains(*points[point])]
    assert covered == []


def test_a_label_stands_on_the_side_it_likes_where_there_is_room(axes):
    boxes, points = written(axes, {"low": (0, 0), "high_SE": (1, 1), "middle": (0.5, 0.5)})
    assert boxes["low"].y1 < points["low"][1]
    assert boxes["high_SE"].y0 > points["high_SE"][1]
    assert all(boxes[name].x0 > points[name][0] for name in ("low", "middle"))


def test_a_label_does_not_leave_the_axes(axes):
    boxes, _ = written(axes, {"a long name at the right": (1, 0), "a long name at the left": (0, 1)})
    for box in boxes.values():
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1


def test_where_there_is_no_room_it_stands_where_it_likes_best(axes):
    boxes, points = written(axes, {f"point {index}": (0.5, 0.5) for index in range(12)})
    assert len(boxes) == 12
    assert boxes["point 11"].x0 > points["point 11"][0]
    assert boxes["point 11"].y1 < points["point 11"][1]


def test_no_labels_are_no_error(axes):
    assert written(axes, {}) == ({}, {})
