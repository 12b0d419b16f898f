"""MACs and parameters over the part P: HetConv beside DWC+PWC and GWC+PWC, by the equations, with where they cross."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from hetconv_cli import equations
from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.conversion.rewrite import apply_plan
from hetconv_cli.conversion.trace import Trace
from hetconv_cli.errors import ArgumentError
from hetconv_cli.measure.analytic import analytic_macs, changed_macs
from hetconv_cli.measure.network import Network
from hetconv_cli.plan import Candidate, Change, Part, Plan, Rules, Wish, make_plan


@dataclass(frozen=True)
class Point:
    """One variant of the network. `p` is also the number of groups of GWC+PWC; None for DWC+PWC.

    `ratio` is of the converted layers' MACs to those of the convolutions that they replace; `misfits` counts layers
    that stay because P does not divide their input channels.
    """

    variant: Literal["standard", "hetconv", "dwc", "gwc"]
    p: Part | None
    macs: int
    params: int
    converted_layers: int
    ratio: float
    misfits: int


@dataclass(frozen=True)
class Crossings:
    """Where HetConv becomes cheaper than the pairs, over the layers that DWC+PWC can replace.

    Attributes:
        dwc_at: The part, not rounded, at which HetConv costs what DWC+PWC costs: above it, less. None: at no part.
        layers: How many layers can be replaced.
        dwc_holds_in: In how many of them equation (6) holds as its terms are here, M and N apart: P = M below DWC+PWC.
        gwc_below: Whether HetConv at P = G costs less than GWC+PWC as it can be built (M -> M, M -> N). The sign of the
            difference is the same for every G, so the two curves never cross. None: both cost the same.
        gwc_holds_in: In how many layers it does. Equation (9) says all, and is right where M = N.
    """

    dwc_at: float | None
    layers: int
    dwc_holds_in: int
    gwc_below: bool | None
    gwc_holds_in: int


@dataclass(frozen=True)
class Sweep:
    """A network over P. `standard` is the network as it is; counts are MACs by equation, of the whole network."""

    model: str
    input: tuple[tuple[int, ...], ...]
    standard: Point
    points: tuple[Point, ...]
    crossings: Crossings


def sweep(network: Network, name: str, shapes: tuple[tuple[int, ...], ...], parts: Sequence[Part] | None) -> Sweep:
    """HetConv and GWC+PWC at every part, and DWC+PWC.

    Args:
        network: From `open_source` or `prepare`.
        name: Of the model, for the report.
        shapes: Of its inputs, for the report.
        parts: None: the powers of two that divide the input channels of every layer, and P = M.

    Raises:
        ArgumentError: a part that fits no layer; a network in which nothing can be converted.
    """
    candidates = network.candidates()
    dwc = make_plan(candidates, Rules(Wish("dwc")))
    if not dwc.converted:
        raise ArgumentError(f"{name}: nothing to convert, so nothing to sweep")
    standard_macs = sum(analytic_macs(network.model, network.trace).values())
    standard_params = sum(parameter.numel() for parameter in network.model.parameters())
    points = []
    for part in parts if parts is not None else _parts_that_fit(dwc):
        points.append(_point(network, candidates, Wish("hetconv", p=part)))
        if part != "pc" and part > 1:
            points.append(_point(network, candidates, Wish("gwc", groups=part)))
    points.append(_point(network, candidates, Wish("dwc")))
    standard = Point("standard", None, standard_macs, standard_params, 0, 1.0, 0)
    return Sweep(name, shapes, standard, tuple(points), _crossings(dwc, network.trace))


def _parts_that_fit(plan: Plan) -> list[Part]:
    channels = math.gcd(*(layer.geometry.in_channels for layer in plan.converted))
    powers = [2**exponent for exponent in range(1, channels.bit_length())]
    return [*(power for power in powers if channels % power == 0), "pc"]


def _point(network: Network, candidates: list[Candidate], wish: Wish) -> Point:
    plan = make_plan(candidates, Rules(wish))
    tally = analytic_macs(network.model, network.trace, plan)
    before = analytic_macs(network.model, network.trace)
    names = [layer.name for layer in plan.converted]
    old, new = (sum(counts.get(name, 0) for name in names) for counts in (before, tally))
    rewritten = apply_plan(meta_copy(network.model), plan)
    return Point(
        variant=wish.variant,
        p={"hetconv": wish.p, "gwc": wish.groups}.get(wish.variant),
        macs=sum(tally.values()),
        params=sum(parameter.numel() for parameter in rewritten.parameters()),
        converted_layers=len(names),
        ratio=new / old if old else 1.0,
        misfits=sum("not divisible" in (layer.reason or "") for layer in plan.kept),
    )


def _crossings(plan: Plan, trace: Trace) -> Crossings:
    """HetConv costs a + b / P, by equation (2); DWC+PWC and the pointwise part of GWC+PWC do not depend on P."""
    dwc_holds = gwc_holds = 0
    constant = over_p = dwc = gwc_over_p = Fraction(0)
    for layer in plan.converted:
        g, calls = layer.geometry, trace.of(layer.name)
        positions = sum(call.output[-2] * call.output[-1] for call in calls)
        one = equations.hetconv_macs(g.in_channels, g.out_channels, (1, 1), (1, positions), 1)
        constant += one
        over_p += one * (g.taps - 1)
        dwc += changed_macs(g, Change("dwc"), (1, positions))
        gwc_over_p += g.in_channels * g.in_channels * g.taps * positions
        dwc_holds += equations.hetconv_ratio(g.kernel, g.in_channels) < equations.dwc_ratio(g.out_channels, g.kernel)
        gwc_holds += g.out_channels * (g.taps - 1) < g.in_channels * g.taps
    at = float(over_p / (dwc - constant)) if dwc > constant else None
    below = None if over_p == gwc_over_p else over_p < gwc_over_p
    return Crossings(at, len(plan.converted), dwc_holds, below, gwc_holds)
