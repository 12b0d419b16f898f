"""What a conversion does to a network, stage by stage: the report of `hetconv convert`."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hetconv_cli.convert.copying import meta_copy
from hetconv_cli.convert.rewrite import apply_plan
from hetconv_cli.measure.analytic import analytic_macs
from hetconv_cli.measure.counters import replay
from hetconv_cli.measure.network import Network
from hetconv_cli.measure.tally import Tally
from hetconv_cli.plan import Plan

MOST_STAGES = 16


@dataclass(frozen=True)
class Stage:
    """Some layers of a network taken together: analytic MACs and parameters before and after."""

    name: str
    convs: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


@dataclass(frozen=True)
class Summary:
    """Of a conversion. `executed` are the dispatcher's MACs of the converted layers in the form that runs here."""

    stages: tuple[Stage, ...]
    kept: Stage
    others: Stage
    total: Stage
    converted_macs: int
    executed: int


def summarize(network: Network, plan: Plan) -> Summary:
    """Stage by stage: the converted layers; then the Conv2d that are kept, and everything else, each in one row."""
    rewritten = apply_plan(meta_copy(network.model), plan)
    before, after = analytic_macs(network.model, network.trace), analytic_macs(network.model, network.trace, plan)
    old, new = _Params(network.model), _Params(rewritten)

    absorbed = {layer.name: layer.absorbs for layer in plan.converted}

    def stage(name: str, layers: list[str], convs: int) -> Stage:
        layers = [*layers, *(more for layer in layers for more in absorbed.get(layer, ()))]
        return Stage(name, convs, _over(before, layers), _over(after, layers), old.of(layers), new.of(layers))

    names = [layer.name for layer in plan.converted]
    kept = [layer.name for layer in plan.kept]
    total = Stage("total", len(plan.layers), sum(before.values()), sum(after.values()), old.total, new.total)
    covered = stage("", names + kept, 0)
    others = Stage(
        "other layers",
        0,
        total.macs_before - covered.macs_before,
        total.macs_after - covered.macs_after,
        total.params_before - covered.params_before,
        total.params_after - covered.params_after,
    )
    calls = {layer.name: network.trace.of(layer.name) for layer in plan.converted}
    executed = sum(
        sum(replay(rewritten.get_submodule(name), calls[name], thop=False).dispatcher.values()) for name in names
    )
    stages = tuple(stage(title, layers, len(layers)) for title, layers in group_by_stage(names))
    return Summary(stages, stage("kept", kept, len(kept)), others, total, _over(after, names), executed)


def group_by_stage(names: list[str]) -> list[tuple[str, list[str]]]:
    """Layers by their name's first parts: as many parts as make at least two groups, unless those are too many."""
    groups = _by_prefix(names, 1)
    for depth in range(2, 8):
        finer = _by_prefix(names, depth)
        if len(groups) > 1 or len(finer) > MOST_STAGES:
            break
        groups = finer
    return list(groups.items())


def _by_prefix(names: list[str], depth: int) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return groups


class _Params:
    """Parameters of a model, by module; one that several modules share is counted once, at the first."""

    def __init__(self, model: nn.Module) -> None:
        self._by_name: Tally = {}
        for name, parameter in model.named_parameters():
            module = name.rpartition(".")[0]
            self._by_name[module] = self._by_name.get(module, 0) + parameter.numel()
        self.total = sum(self._by_name.values())

    def of(self, layers: Iterable[str]) -> int:
        wanted = set(layers)
        return sum(number for name, number in self._by_name.items() if _inside(name, wanted))


def _inside(name: str, layers: set[str]) -> bool:
    while True:
        if name in layers:
            return True
        if not name:
            return False
        name = name.rpartition(".")[0]


def _over(tally: Tally, layers: list[str]) -> int:
    """MACs of the layers, with a squeeze-and-excitation behind them."""
    wanted = set(layers)
    return sum(macs for name, macs in tally.items() if _inside(name, wanted))
