"""Rules -> plan: what becomes of every Conv2d of a network, by name, and why the others stay as they are.

A plan is data. It is made here, without torch, from the facts of each convolution (`Candidate`) and the user's `Rules`;
`hetconv_cli.conversion` applies it; `hetconv_cli.plan_file` reads and writes both as text.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from hetconv_cli.arrangement import Arrangement
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import Geometry
from hetconv_cli.patterns import matches

Variant = Literal["standard", "hetconv", "dwc", "gwc"]  # standard: the convolution stays, an SE comes behind it
VARIANTS: tuple[Variant, ...] = get_args(Variant)
Part = int | Literal["pc"]

STEM_CHANNELS = 4  # a convolution that reads at most this many channels reads an image
SE_REDUCTION = 16  # the paper's


@dataclass(frozen=True)
class Wish:
    """What a user wants for a layer; what its channels allow is seen when the plan is made.

    `p` is for hetconv, `groups` for gwc. `arrangement` None: blocked, or shifted where the layer reads a
    concatenation. `se` is the reduction of a squeeze-and-excitation after the layer, or None.
    """

    variant: Variant = "hetconv"
    p: Part = 4
    groups: int = 4
    arrangement: Arrangement | None = None
    se: int | None = None


Rule = Wish | Literal["keep"]


@dataclass(frozen=True)
class Rules:
    """In order of strength: exact layer name, then the first pattern that matches the whole name, then the default."""

    default: Rule = field(default_factory=Wish)
    exact: Mapping[str, Rule] = field(default_factory=dict)
    patterns: tuple[tuple[str, Rule], ...] = ()

    def for_layer(self, name: str) -> tuple[Rule, str]:
        """The rule for a layer and where it comes from: 'name', 'pattern' or 'default'.

        Raises:
            ArgumentError: a pattern takes too long on the name.
        """
        if name in self.exact:
            return self.exact[name], "name"
        for pattern, rule in self.patterns:
            if matches(pattern, name):
                return rule, "pattern"
        return self.default, "default"


@dataclass(frozen=True)
class Pair:
    """A depthwise convolution and the pointwise one behind it, taken as ONE convolution of `geometry`.

    `absorbs` names what goes with the depthwise one: normalisation and activation in between, the pointwise one last.
    """

    geometry: Geometry
    absorbs: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """One Conv2d of a network: its name(s), geometry, and what stands in the way of replacing it, if anything.

    Where pairs are asked for, a depthwise one has the `pair` that it begins, or says with `no_pair` why it begins none.
    """

    name: str
    geometry: Geometry
    obstacle: str | None = None
    aliases: tuple[str, ...] = ()
    reads_concatenation: bool = False
    pair: Pair | None = None
    no_pair: str | None = None


@dataclass(frozen=True)
class Change:
    """What stands in the convolution's place, every number resolved."""

    variant: Variant
    p: int | None = None
    groups: int | None = None
    arrangement: Arrangement | None = None
    se: int | None = None

    def __str__(self) -> str:
        what = {"hetconv": f"HetConv P={self.p} {self.arrangement}", "dwc": "DWC+PWC", "gwc": f"GWC{self.groups}+PWC"}
        return what.get(self.variant, self.variant) + (f" + SE{self.se}" if self.se else "")


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one Conv2d: a change, or none and the reason; `remark` says what is unusual about a change.

    With `absorbs` (see `Pair`) it is the depthwise convolution of a pair, and `geometry` is that of the whole pair.
    """

    name: str
    geometry: Geometry
    change: Change | None
    reason: str | None = None
    aliases: tuple[str, ...] = ()
    remark: str | None = None
    absorbs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What becomes of every Conv2d, in the network's order."""

    layers: tuple[LayerPlan, ...]

    @property
    def converted(self) -> tuple[LayerPlan, ...]:
        """The layers that change."""
        return tuple(layer for layer in self.layers if layer.change)

    @property
    def kept(self) -> tuple[LayerPlan, ...]:
        """The layers that stay, each with its reason."""
        absorbed = self.absorbed
        return tuple(layer for layer in self.layers if not layer.change and layer.name not in absorbed)

    @property
    def absorbed(self) -> frozenset[str]:
        """Modules that do nothing any more, because a pair's one convolution does their work."""
        return frozenset(name for layer in self.converted for name in layer.absorbs)


def in_kind(geometry: Geometry) -> str | None:
    """Why a convolution of this kind is never converted, or None where it can be."""
    if geometry.groups > 1:
        depthwise = geometry.groups == geometry.in_channels
        return "depthwise" if depthwise else f"grouped ({geometry.groups} groups)"
    if geometry.taps == 1:
        return "1x1: nothing to save"
    if not geometry.is_odd:
        return f"even kernel {geometry.kernel[0]}x{geometry.kernel[1]}: no centre tap"
    return None


def impossible(change: Change, geometry: Geometry) -> str | None:
    """Why a convolution of this geometry cannot change so (no plan of ours says it), or None where it can."""
    if change.variant == "standard":
        return None
    divisor = {"hetconv": change.p, "gwc": change.groups}.get(change.variant, 1)
    if divisor is None:
        return "its part or its groups are missing"
    if geometry.in_channels % divisor:
        return f"{geometry.in_channels} input channels must be divisible by {divisor}"
    return in_kind(geometry) if geometry.groups > 1 or not geometry.is_odd else None


def stem(geometry: Geometry) -> str | None:
    """Why a convolution that reads an image is kept unless a rule names it, or None for any other."""
    if geometry.in_channels > STEM_CHANNELS:
        return None
    return f"image stem, {geometry.in_channels} channel{'s' if geometry.in_channels > 1 else ''}"


def make_plan(candidates: Iterable[Candidate], rules: Rules) -> Plan:
    """What becomes of each candidate under the rules.

    Raises:
        ArgumentError: a rule that names no Conv2d, a pattern that takes too long to match, or a part that divides the
            channels of no convolution at all.
    """
    candidates = tuple(candidates)
    _check_rules_match(candidates, rules)
    plan = _with_absorbed(Plan(tuple(_decide(candidate, rules) for candidate in candidates)))
    _check_part_fits_somewhere(plan, rules)
    return plan


def _decide(candidate: Candidate, rules: Rules) -> LayerPlan:
    rule, origin = rules.for_layer(candidate.name)
    if candidate.pair and not (isinstance(rule, Wish) and rule.variant == "standard"):
        return _decide_pair(candidate, candidate.pair, rules)
    geometry = candidate.geometry
    kept = LayerPlan(candidate.name, geometry, None, aliases=candidate.aliases)
    reason = candidate.obstacle or in_kind(geometry)
    if reason:
        return replace(kept, reason=f"{reason}, no pair: {candidate.no_pair}" if candidate.no_pair else reason)
    if rule == "keep":
        return replace(kept, reason=f"kept by rule ({origin})")
    if stem(geometry) and origin != "name":
        return replace(kept, reason=stem(geometry))
    misfit = _misfit(rule, geometry)
    if misfit:
        return replace(kept, reason=misfit)
    change, remark = _resolve(rule, candidate)
    return replace(kept, change=change, remark=remark)


def _decide_pair(candidate: Candidate, pair: Pair, rules: Rules) -> LayerPlan:
    """As one convolution of the pair's geometry; where that cannot change, both convolutions stay as they are."""
    whole = _decide(replace(candidate, geometry=pair.geometry, pair=None), rules)
    if not whole.change:
        return replace(whole, geometry=candidate.geometry, reason=f"depthwise, its pair stays: {whole.reason}")
    return replace(whole, absorbs=pair.absorbs)


def _with_absorbed(plan: Plan) -> Plan:
    """The plan, with the pointwise convolutions of its pairs saying whose they are."""
    heads = {name: layer.name for layer in plan.converted for name in layer.absorbs}
    return Plan(
        tuple(
            replace(layer, reason=f"one convolution with {heads[layer.name]}") if layer.name in heads else layer
            for layer in plan.layers
        )
    )


def _misfit(wish: Wish, geometry: Geometry) -> str | None:
    m = geometry.in_channels
    if wish.variant == "standard" and not wish.se:
        return "stays the standard convolution"
    if wish.variant == "hetconv":
        if wish.p == "pc" or (wish.p > 1 and m % wish.p == 0):
            return None
        return (
            "p = 1 is the standard convolution" if wish.p == 1 else f"{m} input channels not divisible by p = {wish.p}"
        )
    if wish.variant == "gwc" and m % wish.groups:
        return f"{m} input channels not divisible by {wish.groups} groups"
    return None


def _resolve(wish: Wish, candidate: Candidate) -> tuple[Change, str | None]:
    if wish.variant == "gwc":
        return Change("gwc", groups=wish.groups, se=wish.se), None
    if wish.variant != "hetconv":
        return Change(wish.variant, se=wish.se), None
    part = candidate.geometry.in_channels if wish.p == "pc" else wish.p
    arrangement, remark = wish.arrangement, None
    if arrangement is None:
        arrangement = "shifted" if candidate.reads_concatenation else "blocked"
        if candidate.reads_concatenation:
            remark = "reads a concatenation: shifted, so that each class sees every source"
    return Change("hetconv", p=part, arrangement=arrangement, se=wish.se), remark


def _check_rules_match(candidates: tuple[Candidate, ...], rules: Rules) -> None:
    names = [candidate.name for candidate in candidates]
    for name in rules.exact:
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ArgumentError(f"the plan names {name!r}, which is no Conv2d of this model{hint}")
    for pattern, _ in rules.patterns:
        if not any(matches(pattern, name) for name in names):
            raise ArgumentError(f"the plan's pattern 're:{pattern}' matches no Conv2d of this model")


def _check_part_fits_somewhere(plan: Plan, rules: Rules) -> None:
    """A part that fits nowhere is a mistake in the argument, not a network with nothing to convert."""
    wish = rules.default
    if plan.converted or not isinstance(wish, Wish):
        return
    misfits = [layer for layer in plan.kept if "not divisible" in (layer.reason or "")]
    if not misfits:
        return
    channels = sorted({layer.geometry.in_channels for layer in misfits})
    what = f"p = {wish.p}" if wish.variant == "hetconv" else f"{wish.groups} groups"
    fits = [str(d) for d in range(2, min(channels) + 1) if all(m % d == 0 for m in channels)][:6]
    instead = f"; choose {', '.join(fits)}{' or pc' if wish.variant == 'hetconv' else ''}" if fits else ""
    shown = ", ".join(map(str, channels[:6])) + (", ..." if len(channels) > 6 else "")
    raise ArgumentError(
        f"{what} divides the input channels of none of the {len(misfits)} convolutions that could be converted"
        f" ({shown}){instead}"
    )
