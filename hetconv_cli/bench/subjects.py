"""What is timed against what: a network and its variants, or one layer and its variants."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from hetconv_cli.bench.peer import in_public_form, more_macs
from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.conversion.rewrite import apply_plan
from hetconv_cli.conversion.trace import trace
from hetconv_cli.conversion.transfer import Transfer
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import use_implementation
from hetconv_cli.measure.analytic import analytic_macs
from hetconv_cli.measure.network import Network
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import LayerPlan, Part, Plan, Rules, Wish, make_plan

# What is timed, which is more than what convert makes. grouped: the peer's form; mixed: a plan of several variants.
Timed = Literal["standard", "hetconv", "dwc", "gwc", "grouped", "mixed"]
Origin = Literal["file", "plan"]  # a file that convert wrote; a plan.yaml


@dataclass(frozen=True)
class Entrant:
    """A rewriting that is to be timed against the standard network.

    Attributes:
        plan: What becomes of every Conv2d.
        p: The part as it was asked for ("pc" too); None: the plan says it layer by layer.
        origin: Where the plan comes from, if not from a wish.
        model: Ready made, as a file's; None: made from the standard network.
        peer: In the form of public code, see `hetconv_cli.bench.peer`.
    """

    plan: Plan
    p: Part | None = None
    origin: Origin | None = None
    model: nn.Module | None = None
    peer: bool = False


@dataclass(frozen=True)
class Subject:
    """A module to be timed; `reference` computes what it must compute, by the readable implementation.

    Attributes:
        variant: What stands in the convolutions' places.
        p: The part; None: none, or several.
        groups: Of gwc; None: none, or several.
        model: What is timed.
        macs: Of one image, analytic.
        parts: How many layers have each part.
        origin: As the entrant's.
        readable: The HetConv network that computes the same, where `model` itself has no HetConv layers.
    """

    variant: Timed
    p: Part | None
    groups: int | None
    model: nn.Module
    macs: int
    parts: dict[int, int] = field(default_factory=dict)
    origin: Origin | None = None
    readable: nn.Module | None = None

    def reference(self) -> nn.Module:
        """The same weights with HetConv layers class by class."""
        model = copy.deepcopy(self.readable or self.model)
        use_implementation(model, "reference")
        return model


@dataclass(frozen=True)
class Contest:
    """The standard form first, then its variants, on one input (batch 1).

    `images` [n, C, H, W] are what int8 is calibrated on; None: random inputs.
    """

    layer: str | None
    subjects: tuple[Subject, ...]
    example: ExampleSpec
    images: Tensor | None = None

    def promised(self, subject: Subject) -> float:
        """The speed-up that the MACs promise."""
        return self.subjects[0].macs / subject.macs if subject.macs else 1.0


def entrant(network: Network, rules: Rules | Wish, origin: Origin | None = None) -> Entrant:
    """What rules, or one wish for every layer, make of a network.

    Raises:
        ArgumentError: they convert nothing.
    """
    plan = make_plan(network.candidates(), rules if isinstance(rules, Rules) else Rules(rules))
    if not plan.converted:
        raise ArgumentError(f"nothing to convert in this network, so there is nothing to compare{_reasons(plan)}")
    part = rules.p if isinstance(rules, Wish) and rules.variant == "hetconv" else None
    return Entrant(plan, part, origin)


def with_peers(entrants: Iterable[Entrant]) -> list[Entrant]:
    """The entrants, and behind each that has HetConv layers its peer: the same parts in the form of public code.

    The peer's layers are arranged in blocks, as a grouped convolution takes its channels; it is made from the standard
    network.

    Raises:
        ArgumentError: none has HetConv layers.
    """
    found: list[Entrant] = []
    for one in entrants:
        found.append(one)
        if parts_of(one.plan):
            found.append(replace(one, plan=_in_blocks(one.plan), model=None, peer=True))
    if not any(one.peer for one in found):
        raise ArgumentError("--compare grouped: stands beside HetConv layers, and there are none: give --p")
    return found


def network_contest(
    model: nn.Module,
    network: Network,
    entrants: Sequence[Entrant | Wish],
    example: ExampleSpec,
    transfer: Transfer = "fresh",
) -> Contest:
    """The whole network, standard and rewritten as each entrant says; a wish stands for the entrant it makes.

    `transfer` is how the weights of `model` come into what is made here; "fresh" where they are random.

    Raises:
        ArgumentError: a wish that converts nothing.
    """
    standard = Subject("standard", None, None, model, sum(analytic_macs(network.model, network.trace).values()))
    rewritten = (_rewritten(model, network, one, transfer) for one in _made(network, entrants))
    return Contest(None, (standard, *rewritten), example)


def layer_contests(
    model: nn.Module, network: Network, entrants: Sequence[Entrant | Wish], transfer: Transfer = "fresh"
) -> list[Contest]:
    """One contest for each different layer: by geometry, input size, and what the entrants make of it.

    Each entrant's layers are those of its plan for the network, with weights by `transfer` from `model`.
    """
    contests: dict[tuple[object, ...], Contest] = {}
    made = _made(network, entrants)
    plans = [{layer.name: layer for layer in one.plan.converted} for one in made]
    for name in dict.fromkeys(name for plan in plans for name in plan):
        calls = network.trace.of(name)
        layers = [plan.get(name) for plan in plans]
        changes = [layer.change if layer else None for layer in layers]
        geometry = next(layer.geometry for layer in layers if layer)
        if not calls or (key := (geometry, calls[0].inputs[0], *changes)) in contests:
            continue
        fitting = [(one, layer) for one, layer in zip(made, layers, strict=True) if layer]
        example = ExampleSpec((calls[0].inputs[0],)).with_batch(1)
        contests[key] = replace(_layer_contest(model, fitting, example, transfer), layer=name)
    return list(contests.values())


def _layer_contest(
    model: nn.Module, fitting: list[tuple[Entrant, LayerPlan]], example: ExampleSpec, transfer: Transfer
) -> Contest:
    module = _alone(model, fitting[0][1])
    empty, inputs = meta_copy(module), example.make(device="meta")
    alone = Network(empty, inputs, trace(empty, inputs))
    entrants = [replace(one, plan=Plan((_plan_alone(layer),)), model=None) for one, layer in fitting]
    return network_contest(module, alone, entrants, example, transfer)


def _alone(model: nn.Module, layer: LayerPlan) -> nn.Module:
    """The convolution, or all that a pair's one convolution stands for."""
    conv = model.get_submodule(layer.name)
    return nn.Sequential(conv, *map(model.get_submodule, layer.absorbs)) if layer.absorbs else conv


def _plan_alone(layer: LayerPlan) -> LayerPlan:
    """The layer's plan in the network that `_alone` makes."""
    absorbs = tuple(str(index) for index in range(1, 1 + len(layer.absorbs)))
    return replace(layer, name="0" if absorbs else "", aliases=(), absorbs=absorbs)


def _made(network: Network, entrants: Sequence[Entrant | Wish]) -> list[Entrant]:
    return [one if isinstance(one, Entrant) else entrant(network, one) for one in entrants]


def _rewritten(model: nn.Module, network: Network, one: Entrant, transfer: Transfer) -> Subject:
    plan = one.plan
    parts = parts_of(plan)
    macs = sum(analytic_macs(network.model, network.trace, plan).values())
    new = (one.model or apply_plan(model, plan, transfer)).eval()
    groups = {layer.change.groups for layer in plan.converted if layer.change}
    part = one.p or (next(iter(parts)) if len(parts) == 1 else None)
    only = next(iter(groups)) if len(groups) == 1 else None
    subject = Subject(_variant(plan), part, only, new, macs, parts, one.origin)
    if not one.peer:
        return subject
    public = in_public_form(new).eval()
    return replace(subject, variant="grouped", model=public, readable=new, macs=macs + more_macs(plan, network.trace))


def parts_of(plan: Plan) -> dict[int, int]:
    """How many layers become a HetConv of each part, by part."""
    changes = [layer.change for layer in plan.converted]
    return dict(sorted(Counter(change.p for change in changes if change and change.p).items()))


def _variant(plan: Plan) -> Timed:
    variants: set[Timed] = {layer.change.variant for layer in plan.converted if layer.change}
    return variants.pop() if len(variants) == 1 and variants != {"standard"} else "mixed"  # standard with an SE is new


def _in_blocks(plan: Plan) -> Plan:
    def in_blocks(layer: LayerPlan) -> LayerPlan:
        if layer.change is None or layer.change.variant != "hetconv":
            return layer
        return replace(layer, change=replace(layer.change, arrangement="blocked"))

    return Plan(tuple(in_blocks(layer) for layer in plan.layers))


def _reasons(plan: Plan) -> str:
    """Why its convolutions are kept."""
    if not plan.layers:
        return ": it has no Conv2d"
    reasons = Counter(layer.reason for layer in plan.kept)
    listed = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common(3))
    return f": its {len(plan.layers)} Conv2d are kept ({listed})"
