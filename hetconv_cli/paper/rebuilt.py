"""Our figures for the paper's rows: each network is built, rewritten and counted. Knows nothing of what was printed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.conversion.rewrite import apply_plan
from hetconv_cli.layers import use_implementation
from hetconv_cli.measure.analytic import analytic_macs
from hetconv_cli.measure.counters import count
from hetconv_cli.measure.network import Network, open_source
from hetconv_cli.models.source import resolve
from hetconv_cli.paper.additions import bias_additions, squeezes_counted_again
from hetconv_cli.paper.recipes import RECIPES, WITH_BIAS_ADDITIONS, Recipe
from hetconv_cli.plan import Plan, Rules, make_plan

Progress = Callable[[str, int, int], None]  # what is being counted, how many are done, how many there are


@dataclass(frozen=True)
class Figures:
    """One network of ours. MACs of weights alone: no bias, no normalisation (thop counts normalisation and pooling).

    Attributes:
        analytic: MACs by the paper's equations.
        dispatcher: MACs that torch's dispatcher counted.
        thop: MACs that thop counted.
        weights: Of convolutions and linear layers, without biases and normalisation.
        params: All trainable parameters.
        additions: What the paper's figure adds to its MACs, by the conventions in docs/paper.md; in none of the above.
        macs_reduced_pct: Of `dispatcher`, against the baseline's.
        params_reduced_pct: Of `weights`, against those of the same network unconverted.
        converted_layers: How many convolutions were replaced.
    """

    analytic: int
    dispatcher: int
    thop: int
    weights: int
    params: int
    additions: float
    macs_reduced_pct: float
    params_reduced_pct: float
    converted_layers: int


def rebuild(tables: Iterable[str], progress: Progress | None = None) -> dict[str, dict[str, Figures]]:
    """For each table, by row, the figures of our network."""
    workshop = _Workshop()
    rows = [(table, row, recipe) for table in tables for row, recipe in RECIPES[table].items()]
    figures: dict[str, dict[str, Figures]] = {table: {} for table, _, _ in rows}
    for done, (table, row, recipe) in enumerate(rows):
        if progress:
            progress(f"{table} {row}", done, len(rows))
        figures[table][row] = workshop.figures(recipe, biases=table in WITH_BIAS_ADDITIONS)
    return figures


@dataclass(frozen=True)
class _Counted:
    plan: Plan
    analytic: int
    dispatcher: int
    thop: int
    weights: int
    params: int


class _Workshop:
    """Builds each network once, and counts each of its forms once."""

    def __init__(self) -> None:
        self._networks: dict[str, Network] = {}
        self._counted: dict[Recipe, _Counted] = {}

    def figures(self, recipe: Recipe, biases: bool) -> Figures:
        this = self.count(recipe)
        base = self.count(Recipe(recipe.baseline, None, recipe.baseline))
        unconverted = self.count(Recipe(recipe.model, None, recipe.model))
        network = self.network(recipe.model)
        additions = squeezes_counted_again(network) + (bias_additions(network, this.plan) if biases else 0)
        return Figures(
            analytic=this.analytic,
            dispatcher=this.dispatcher,
            thop=this.thop,
            weights=this.weights,
            params=this.params,
            additions=float(additions),
            macs_reduced_pct=_reduced(this.dispatcher, base.dispatcher),
            params_reduced_pct=_reduced(this.weights, unconverted.weights),
            converted_layers=len(this.plan.converted),
        )

    def network(self, model: str) -> Network:
        if model not in self._networks:
            self._networks[model], _ = open_source(resolve(model))
        return self._networks[model]

    def count(self, recipe: Recipe) -> _Counted:
        if recipe not in self._counted:
            self._counted[recipe] = _count(self.network(recipe.model), recipe)
        return self._counted[recipe]


def _count(network: Network, recipe: Recipe) -> _Counted:
    plan = _plan(network, recipe)
    rewritten = apply_plan(meta_copy(network.model), plan)
    use_implementation(rewritten, "reference")  # so that the dispatcher sees the layer's own work
    counts = count(rewritten, network.inputs)
    analytic = analytic_macs(network.model, network.trace, plan)
    return _Counted(
        plan,
        analytic=sum(analytic.values()),
        dispatcher=sum(counts.dispatcher.values()),
        thop=sum(counts.thop.values()),
        weights=_weights(rewritten),
        params=sum(parameter.numel() for parameter in rewritten.parameters()),
    )


def _plan(network: Network, recipe: Recipe) -> Plan:
    if recipe.wish is None:
        return Plan(())
    return make_plan(network.candidates(recipe.pairs), Rules(recipe.wish))


def _weights(model: nn.Module) -> int:
    """Biases and normalisation have one dimension, weights two or more."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def _reduced(new: int, old: int) -> float:
    return 100 * (old - new) / old
