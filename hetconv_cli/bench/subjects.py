"""What is timed against what: a network and its variants, or one layer and its variants."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from hetconv_cli.convert.candidates import find_candidates
from hetconv_cli.convert.copying import meta_copy
from hetconv_cli.convert.rewrite import apply_plan
from hetconv_cli.convert.trace import trace
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure.analytic import analytic_macs
from hetconv_cli.measure.network import Network
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Part, Plan, Rules, Variant, Wish, make_plan


@dataclass(frozen=True)
class Subject:
    """A module to be timed; `reference` computes what it must compute, by the readable implementation."""

    variant: Variant
    p: Part | None
    groups: int | None
    model: nn.Module
    macs: int

    def reference(self) -> nn.Module:
        """The same weights with HetConv layers class by class."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, HetConv2d):
                module.implementation = "reference"
        return model


@dataclass(frozen=True)
class Contest:
    """The standard form first, then its variants, on one input (batch 1)."""

    layer: str | None
    subjects: tuple[Subject, ...]
    example: ExampleSpec

    def promised(self, subject: Subject) -> float:
        """The speed-up that the MACs promise."""
        return self.subjects[0].macs / subject.macs if subject.macs else 1.0


def network_contest(model: nn.Module, network: Network, wishes: Sequence[Wish], example: ExampleSpec) -> Contest:
    """The whole network, standard and rewritten as each wish says.

    Raises:
        ArgumentError: a wish that converts nothing.
    """
    standard = Subject("standard", None, None, model, sum(analytic_macs(network.model, network.trace).values()))
    return Contest(None, (standard, *(_rewritten(model, network, wish) for wish in wishes)), example)


def layer_contests(model: nn.Module, network: Network, wishes: Sequence[Wish]) -> list[Contest]:
    """One contest for each different geometry and input size among the layers that the first wish converts."""
    contests: dict[tuple[object, ...], Contest] = {}
    plan = _plan(network, wishes[0])
    for layer in plan.converted:
        calls = network.trace.of(layer.name)
        if not calls:
            continue
        key = (layer.geometry, calls[0].inputs[0])
        if key in contests:
            continue
        conv = model.get_submodule(layer.name)
        example = ExampleSpec((calls[0].inputs[0],)).with_batch(1)
        alone = Network(
            meta_copy(conv), example.make(device="meta"), trace(meta_copy(conv), example.make(device="meta"))
        )
        fitting = [wish for wish in wishes if _fits(alone, wish)]
        contests[key] = replace(network_contest(conv, alone, fitting, example), layer=layer.name)
    return list(contests.values())


def _rewritten(model: nn.Module, network: Network, wish: Wish) -> Subject:
    plan = _plan(network, wish)
    macs = sum(analytic_macs(network.model, network.trace, plan).values())
    groups = wish.groups if wish.variant == "gwc" else None
    part = wish.p if wish.variant == "hetconv" else None
    return Subject(wish.variant, part, groups, apply_plan(model, plan, "fresh").eval(), macs)


def _plan(network: Network, wish: Wish) -> Plan:
    plan = make_plan(find_candidates(network.model, network.trace), Rules(wish))
    if not plan.converted:
        raise ArgumentError("nothing to convert in this network, so there is nothing to compare")
    return plan


def _fits(network: Network, wish: Wish) -> bool:
    try:
        return bool(_plan(network, wish))
    except ArgumentError:
        return False
