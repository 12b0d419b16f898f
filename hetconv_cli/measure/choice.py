"""Choosing P layer by layer: least error within a budget of MACs or time, or least MACs within an error."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from hetconv_cli.conversion.calibration.part_errors import Errors, measured_errors, spectral_errors
from hetconv_cli.conversion.calibration.samples import Samples, read_samples
from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.trace import Trace, trace
from hetconv_cli.errors import ArgumentError
from hetconv_cli.knapsack import Option, Selection, least_cost, least_error
from hetconv_cli.measure.analytic import analytic_macs, changed_macs
from hetconv_cli.measure.layer_time import time_layers
from hetconv_cli.models.example import spec_of
from hetconv_cli.plan import Change, LayerPlan, Plan, Rules, Wish, make_plan

Progress = Callable[[str, int, int], None]
Kind = Literal["budget", "latency_budget", "max_error"]


@dataclass(frozen=True)
class PartOption:
    """One layer with one part. `p` None: it stays as it is. `cost` in MACs, or nanoseconds for a latency budget."""

    p: int | None
    cost: int
    error: float


@dataclass(frozen=True)
class LayerChoice:
    """One layer: everything that could be chosen, and what was."""

    name: str
    options: tuple[PartOption, ...]
    chosen: PartOption


@dataclass(frozen=True)
class Choice:
    """Parts chosen for a whole network.

    Attributes:
        rules: To convert it so.
        plan: What becomes of every Conv2d under them.
        layers: The layers between which the choice was.
        limit: 'budget', 'latency_budget' or 'max_error', and its value.
        errors_from: 'images' or 'weights'.
        error: Sum over the layers of squared error over squared spread.
        bound: No choice within the limit has a smaller sum (for 'max_error': a smaller cost); equal to `error` (or
            `cost`) where the choice is exactly the best.
        cost: Of the whole network in MACs; for a latency budget, of the layers in nanoseconds.
        cost_before: The same for the original.
    """

    rules: Rules
    plan: Plan
    layers: tuple[LayerChoice, ...]
    limit: tuple[Kind, float]
    errors_from: Literal["images", "weights"]
    error: float
    bound: float
    cost: int
    cost_before: int


def choose_parts(
    model: nn.Module,
    example: Any,
    *,
    budget: float | None = None,
    latency_budget: float | None = None,
    max_error: float | None = None,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
) -> Choice:
    """The part of each layer that makes the least total error under a limit, proven on the errors of each layer.

    Args:
        model: Any network.
        example: What it is called with: a tensor or a tuple of tensors.
        budget: MACs of the rewritten network, as a part of the original's.
        latency_budget: Time of the layers that can be converted, as a part of what they take now, measured here.
        max_error: Sum over the layers of squared error over squared spread; the fewest MACs within it are chosen.
            One of these three.
        calibration: Images to measure errors on, as `convert` takes them. None: energy of the weights that go.
        seed: As in `convert`.

    Raises:
        ArgumentError: not exactly one limit, one out of reach, or nothing to choose from.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    seen = trace(model, inputs)
    samples = None if calibration is None else read_samples(calibration, model, spec_of(example))
    limit = the_limit(budget, latency_budget, max_error)
    return choose(model, seen, limit, Wish(), samples, seed=seed)


def the_limit(budget: float | None, latency_budget: float | None, max_error: float | None) -> tuple[Kind, float]:
    """The one that is given.

    Raises:
        ArgumentError: none or several are, or it is out of range.
    """
    named: list[tuple[Kind, float | None]] = [
        ("budget", budget),
        ("latency_budget", latency_budget),
        ("max_error", max_error),
    ]
    given = [(kind, value) for kind, value in named if value is not None]
    if len(given) != 1:
        raise ArgumentError("give one of budget, latency budget and maximal error")
    kind, value = given[0]
    if not (0 < value < math.inf) or (kind != "max_error" and value > 1):
        expected = "a number above 0" if kind == "max_error" else "a part above 0, at most 1, such as 0.4"
        raise ArgumentError(f"{kind.replace('_', ' ')}: expected {expected}, got {value}")
    return kind, value


def choose(
    model: nn.Module,
    seen: Trace,
    limit: tuple[Kind, float],
    wish: Wish,
    samples: Samples | None,
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Choice:
    """`choose_parts` on a traced model; `wish` says how its layers are arranged."""
    if wish.variant != "hetconv" or wish.se:
        raise ArgumentError("parts are chosen for HetConv layers alone, without squeeze-and-excitation")
    candidates = find_candidates(model, seen)
    layers = make_plan(candidates, Rules(replace(wish, p="pc"))).converted
    if not layers:
        raise ArgumentError("there is no convolution that could be converted, so there is nothing to choose")
    if samples is None:
        errors = spectral_errors(model, layers)
    else:
        errors = measured_errors(model, layers, samples, seed=seed, progress=progress)
    kind, value = limit
    if kind == "latency_budget":
        costs, rest = time_layers(model, layers, seen, progress), 0
    else:
        costs = {layer.name: _macs(layer, seen) for layer in layers}
        rest = sum(analytic_macs(model, seen).values()) - sum(mine[None] for mine in costs.values())
    options = [_options(layer, errors, costs[layer.name]) for layer in layers]
    before = rest + sum(mine[None] for mine in costs.values())
    selection = _select(options, kind, value, before, rest)
    chosen = tuple(
        LayerChoice(layer.name, tuple(mine), mine[pick])
        for layer, mine, pick in zip(layers, options, selection.picks, strict=True)
    )
    rules = Rules("keep", {each.name: replace(wish, p=each.chosen.p) for each in chosen if each.chosen.p})
    bound = selection.bound + (rest if kind == "max_error" else 0)
    return Choice(
        rules=rules,
        plan=make_plan(candidates, rules),
        layers=chosen,
        limit=limit,
        errors_from="weights" if samples is None else "images",
        error=selection.error,
        bound=bound,
        cost=rest + selection.cost,
        cost_before=before,
    )


def _select(options: list[list[PartOption]], kind: Kind, value: float, before: int, rest: int) -> Selection:
    plain = [[Option(option.cost, option.error) for option in mine] for mine in options]
    if kind == "max_error":
        found = least_cost(plain, value)
        assert found is not None  # to keep every layer makes no error
        return found
    found = least_error(plain, math.floor(value * before * (1 + 1e-12)) - rest)  # a part printed with all its digits
    if found is None:
        least = (rest + sum(min(option.cost for option in mine) for mine in plain)) / before
        what = "MACs" if kind == "budget" else "time"
        raise ArgumentError(
            f"{kind.replace('_', ' ')} {value}: out of reach, the cheapest part everywhere leaves {least:.4f} of the"
            f" {what}; give at least {math.ceil(least * 1000) / 1000}"
        )
    return found


def _options(layer: LayerPlan, errors: Errors, costs: dict[int | None, int]) -> list[PartOption]:
    kept = PartOption(None, costs[None], 0.0)
    return [kept, *(PartOption(p, costs[p], error) for p, error in errors[layer.name].items())]


def _macs(layer: LayerPlan, seen: Trace) -> dict[int | None, int]:
    """Of all calls of one layer, as it is (None) and with each part."""
    changes: dict[int | None, Change | None] = {None: None}
    changes |= {p: Change("hetconv", p=p) for p in range(2, layer.geometry.in_channels + 1)}
    return {
        p: sum(
            (call.output[0] if len(call.output) == 4 else 1)
            * changed_macs(layer.geometry, change, (call.output[-2], call.output[-1]))
            for call in seen.of(layer.name)
        )
        for p, change in changes.items()
        if p is None or layer.geometry.in_channels % p == 0
    }
