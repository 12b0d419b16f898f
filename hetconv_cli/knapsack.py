"""One choice for each of several layers: least error within a budget, or least cost within an error. Proven, no torch.

The multiple-choice knapsack, by dynamic programming over the choices that no other beats in both cost and error. With
whole-number costs (MACs, nanoseconds) it is exact as long as those choices are few; where they are more than
`MOST_STATES`, costs are rounded up to a grain, so that what is chosen still keeps the budget, and the same programme
with costs rounded down says how much better any choice could be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_STATES = 4096


@dataclass(frozen=True)
class Option:
    """What may be done with a layer: its cost, a whole number, and the error that it makes."""

    cost: int
    error: float


@dataclass(frozen=True)
class Selection:
    """The option chosen for each layer, by index.

    Attributes:
        picks: One index for each layer.
        cost: Sum of their costs.
        error: Sum of their errors.
        bound: No choice within the budget has less error (`least_error`), or less cost (`least_cost`), than this.
            Equal to `error` or `cost` where the choice is exactly the best.
        grain: Costs were rounded to multiples of this; 1: exact.
    """

    picks: tuple[int, ...]
    cost: int
    error: float
    bound: float
    grain: int


Layers = Sequence[Sequence[Option]]


def least_error(layers: Layers, budget: int) -> Selection | None:
    """The choice of least error whose cost is at most `budget`; None: even the cheapest costs more."""
    if sum(min(option.cost for option in options) for options in layers) > budget:
        return None
    unit = _unit(layers)
    grain = unit
    while (fronts := _best(layers, grain, budget // grain, math.inf, up=True)) is None:
        grain = _coarser(grain, budget)
    # rounded up, even the cheapest may seem too dear, and it is not
    trail = fronts.trail(fronts.front[-1]) if fronts.front else tuple(map(_cheapest, layers))
    error = math.fsum(options[pick].error for options, pick in zip(layers, trail, strict=True))
    bound = error if grain == unit else _relaxed(layers, grain, budget, math.inf)[0].front[-1].error
    return _selection(layers, trail, bound, grain // unit)


def least_cost(layers: Layers, most_error: float) -> Selection | None:
    """The choice of least cost whose error is at most `most_error`; None: every choice has more."""
    if math.fsum(min(option.error for option in options) for options in layers) > most_error:
        return None
    unit = _unit(layers)
    grain, dearest = unit, sum(max(option.cost for option in options) for options in layers)
    while (fronts := _best(layers, grain, math.inf, most_error, up=True)) is None:
        grain = _coarser(grain, dearest)
    trail = fronts.trail(fronts.front[0])
    bound = sum(options[pick].cost for options, pick in zip(layers, trail, strict=True))
    if grain != unit:
        relaxed, coarse = _relaxed(layers, grain, math.inf, most_error)
        bound = relaxed.front[0].cost * coarse
    return _selection(layers, trail, bound, grain // unit)


@dataclass(frozen=True)
class _State:
    """The best known way to spend so much on the layers so far; `before` points into the previous layer's states."""

    cost: int
    error: float
    before: int
    pick: int


class _Fronts:
    """States after each layer, cost ascending and error descending."""

    def __init__(self, fronts: list[list[_State]]) -> None:
        self._fronts = fronts
        self.front = fronts[-1]

    def trail(self, state: _State) -> tuple[int, ...]:
        """The picks that lead to a final state."""
        picks = []
        for states in reversed(self._fronts[:-1]):
            picks.append(state.pick)
            state = states[state.before]
        return tuple(reversed(picks))


def _best(layers: Layers, grain: int, most_cost: float, most_error: float, *, up: bool) -> _Fronts | None:
    """All states that none beats, with costs in grains, rounded up or down; None: too many."""
    fronts = [[_State(0, 0.0, 0, 0)]]
    for options, (cost_left, error_left) in zip(layers, _left(layers, grain, up=up), strict=True):
        states = [
            _State(state.cost + _grains(option.cost, grain, up=up), state.error + option.error, before, pick)
            for before, state in enumerate(fronts[-1])
            for pick, option in enumerate(options)
        ]
        slack = 1e-12 * most_error if most_error < math.inf else 0.0  # sums in another order
        states = [
            state
            for state in states
            if state.cost + cost_left <= most_cost and state.error + error_left <= most_error + slack
        ]
        front = _undominated(states)
        if len(front) > MOST_STATES:
            return None
        fronts.append(front)
    return _Fronts(fronts)


def _relaxed(layers: Layers, grain: int, most_cost: float, most_error: float) -> tuple[_Fronts, int]:
    """With costs rounded down: what it finds is at least as good as any real choice. And the grain it needed."""
    while True:
        limit = most_cost if most_cost == math.inf else most_cost // grain
        found = _best(layers, grain, limit, most_error, up=False)
        if found is not None:
            return found, grain
        grain *= 2


def _left(layers: Layers, grain: int, *, up: bool) -> list[tuple[int, float]]:
    """For each layer, the least cost and least error of all the layers behind it."""
    left = [(0, 0.0)]
    for options in reversed(layers[1:]):
        cost = min(_grains(option.cost, grain, up=up) for option in options)
        left.append((left[-1][0] + cost, left[-1][1] + min(option.error for option in options)))
    return list(reversed(left))[-len(layers) :] if layers else []


def _undominated(states: list[_State]) -> list[_State]:
    front: list[_State] = []
    for state in sorted(states, key=lambda state: (state.cost, state.error)):
        if not front or state.error < front[-1].error:
            front.append(state)
    return front


def _cheapest(options: Sequence[Option]) -> int:
    return min(range(len(options)), key=lambda pick: (options[pick].cost, options[pick].error))


def _grains(cost: int, grain: int, *, up: bool) -> int:
    return -(-cost // grain) if up else cost // grain


def _unit(layers: Layers) -> int:
    """The greatest number that divides every cost: counting in it loses nothing."""
    return max(1, math.gcd(*(option.cost for options in layers for option in options)))


def _coarser(grain: int, total: float) -> int:
    return max(2 * grain, int(total) // (4 * MOST_STATES))


def _selection(layers: Layers, picks: tuple[int, ...], bound: float, grain: int) -> Selection:
    chosen = [options[pick] for options, pick in zip(layers, picks, strict=True)]
    return Selection(
        picks, sum(option.cost for option in chosen), math.fsum(option.error for option in chosen), bound, grain
    )
