"""Channels to classes of fixed sizes, so that the sum of benefits is largest: a transportation problem, solved exactly.

The method is that of successive shortest paths (Kuhn's assignment method with classes in the place of single columns):
channels are placed one after the other, each along the chain of moves from class to class that costs least. Ties go to
the lower number, so the same benefits give the same answer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def assign(benefits: Floats, capacities: Sequence[int]) -> Integers:
    """The class of each channel.

    Args:
        benefits: [channels, classes], finite.
        capacities: How many channels each class takes; together exactly all.

    Returns:
        [channels], every class as often as it takes channels. No other such assignment has a larger sum of benefits.
    """
    room = np.array(capacities, dtype=np.int64)
    channels, classes = benefits.shape
    chosen = np.full(channels, -1, dtype=np.int64)
    if classes == 1:
        return np.zeros(channels, dtype=np.int64)
    moves = _Moves(-benefits, chosen)
    for channel in np.argsort(np.sort(benefits, 1)[:, -2] - benefits.max(1), kind="stable"):  # the clearest first
        moves.place(int(channel), room)
    return chosen


class _Moves:
    """Chains of moves between classes. `prices` keep the cost of a move at zero or above, as Dijkstra needs it."""

    def __init__(self, costs: Floats, chosen: Integers) -> None:
        self._costs, self._chosen = costs, chosen
        self._prices = np.zeros(costs.shape[1])
        self._members: list[list[int]] = [[] for _ in range(costs.shape[1])]

    def place(self, channel: int, room: Integers) -> None:
        """Places one more channel, moving others where that pays."""
        classes = len(self._prices)
        distance = self._costs[channel] - self._prices
        came_from = np.full(classes, -1, dtype=np.int64)  # the class before on the chain; -1: the new channel itself
        mover = np.full(classes, channel, dtype=np.int64)
        open_ = np.ones(classes, dtype=bool)
        while True:
            nearest = int(np.argmin(np.where(open_, distance, np.inf)))
            open_[nearest] = False
            if room[nearest]:
                break
            members = np.array(self._members[nearest])
            moved = self._costs[members] - self._prices
            moved -= moved[:, nearest : nearest + 1]
            best = moved.argmin(0)
            through = distance[nearest] + moved[best, np.arange(classes)]
            better = open_ & (through < distance)
            distance[better] = through[better]
            came_from[better] = nearest
            mover[better] = members[best[better]]
        closed = ~open_
        self._prices[closed] += distance[closed] - distance[nearest]
        room[nearest] -= 1
        self._move_along(nearest, came_from, mover)

    def _move_along(self, last: int, came_from: Integers, mover: Integers) -> None:
        at = last
        while at >= 0:
            moving, before = int(mover[at]), int(came_from[at])
            if before >= 0:
                self._members[before].remove(moving)
            self._members[at].append(moving)
            self._chosen[moving] = at
            at = before
