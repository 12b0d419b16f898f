"""Detections are a set: which of two boxes with nearly equal scores comes first is rounding."""

import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

Arrays = Mapping[str, npt.NDArray[np.generic]]


def in_order_of(expected: Mapping[str, Tensor], got: Arrays) -> Arrays:
    """`got` with the detections of each image in the order of the `expected` ones that they are nearest to.

    An image's outputs share a number at the end of their names ("boxes_0", "labels_0", "scores_0") and their first
    axis. An image whose detections do not pair off, or whose numbers of detections differ, is left as it is.
    """
    images: dict[str, list[str]] = defaultdict(list)
    for name in expected:
        number = re.search(r"_\d+$", name)
        images[number.group() if number else ""].append(name)
    ordered = dict(got)
    for names in images.values():
        lengths = {array.shape[:1] for name in names for array in (expected[name], got[name])}
        if len(lengths) == 1 and lengths not in ({()}, {(0,)}):
            nearest = _nearest([(expected[name].numpy(), got[name]) for name in names])
            if len(set(nearest.tolist())) == len(nearest):
                ordered |= {name: got[name][nearest] for name in names}
    return ordered


def _nearest(pairs: list[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]) -> npt.NDArray[np.intp]:
    """For each row of the first arrays the row of the second ones that is nearest, each array in its own scale."""
    distance = np.zeros((len(pairs[0][0]),) * 2)
    for wanted, found in pairs:
        first, second = (side.reshape(len(side), -1).astype(np.float64) for side in (wanted, found))
        scale = np.abs(first).max() or 1.0
        each = [np.abs(row - second).max(axis=1, initial=0) for row in first]  # row by row: masks are large
        distance += np.stack(each) / scale
    nearest: npt.NDArray[np.intp] = np.argmin(distance, axis=1)
    return nearest
