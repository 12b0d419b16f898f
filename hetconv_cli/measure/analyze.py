"""analyze(): every variant of a network, counted in every way, with the differences explained."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hetconv_cli.conversion.convert import make_wish
from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.conversion.rewrite import apply_plan
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import use_implementation
from hetconv_cli.measure.analytic import analytic_macs, ratio_by_equation
from hetconv_cli.measure.counters import Counts, count, count_dispatched, replay
from hetconv_cli.measure.network import Network, prepare
from hetconv_cli.measure.notes import CONVERTED, SQUEEZES, column_notes, plan_notes
from hetconv_cli.measure.report import ConvertedMacs, FlopsReport, LayerReport, Macs, Ratio, VariantReport
from hetconv_cli.measure.tally import Tally, add, by_layer, join, kinds_of
from hetconv_cli.models.example import ExampleSpec, spec_of
from hetconv_cli.ops.hetconv2d import Implementation
from hetconv_cli.plan import Candidate, Part, Plan, Rules, Variant, Wish, in_kind, make_plan
from hetconv_cli.plan_file import parse_part

Progress = Callable[[str, int, int], None]  # what is being counted, how many are done, how many there are
FORMS: tuple[Implementation, ...] = ("reference", "auto")  # what is counted as the layer's work, and what runs
EQUATION: dict[Variant, Literal[3, 5, 8] | None] = {"standard": None, "hetconv": 3, "dwc": 5, "gwc": 8}


@dataclass(frozen=True)
class Request:
    """A variant to count: what it is called in the report, and the plan that makes it."""

    name: Variant
    p: Part | None
    groups: int | None
    plan: Plan


def analyze(
    model: nn.Module,
    example: Any,
    p: Sequence[Part] = (4,),
    compare: Sequence[str] = (),
    *,
    se: bool | int = False,
    name: str | None = None,
    pairs: bool = False,
    progress: Progress | None = None,
) -> FlopsReport:
    """Counts a network and its rewritten variants by equations, by torch's dispatcher, by thop, and as executed.

    Args:
        model: Any module; it is left as it was. Where it runs on the meta device no weight is copied.
        example: What it is called with: a tensor, a tuple of tensors, a list of images.
        p: Parts for HetConv, "pc" for P = M.
        compare: Of "dwc", "gwc" (groups: the first number in `p`, or 4) and "gwc:GROUPS".
        se: Squeeze-and-excitation after each new layer: True (reduction 16) or the reduction.
        name: Of the model, for the report; its class if None.
        pairs: Take a depthwise + pointwise pair as one convolution, as `convert` does.
        progress: Called before each variant with what it is, how many are done, how many there are.

    Raises:
        ArgumentError: a part or a comparison that is none, or fits no layer.
        HetconvError: the model does not run on `example`.

    Example:
        >>> report = analyze(torchvision.models.vgg16(), torch.randn(1, 3, 224, 224), p=[4])
        >>> report.variants[1].macs.dispatcher
        5296979968
    """
    network = prepare(lambda place: meta_copy(model) if place == "meta" else model, example)
    wishes = wishes_for(p, compare, se)
    spec = example if isinstance(example, ExampleSpec) else spec_of(example)
    return analyze_network(network, wishes, name or type(model).__name__, spec, progress, pairs=pairs)


def wishes_for(
    p: Iterable[object], compare: Iterable[str], se: bool | int = False, groups: int | None = None
) -> list[Wish]:
    """The variants that parts and comparisons ask for, in that order; with `se` the standard network with it first.

    A bare "gwc" takes `groups`, or the first number in `p`, or 4.

    Raises:
        ArgumentError: a part or comparison that is none.
    """
    parts = [make_wish(part, se=se) for part in p]
    numbers = [wish.p for wish in parts if isinstance(wish.p, int)]
    wishes = [*([make_wish(variant="standard", se=se)] if se else []), *parts]
    for word in compare:
        kind, colon, number = word.partition(":")
        if kind == "dwc" and not colon:
            wishes.append(make_wish(variant="dwc", se=se))
        elif kind == "gwc":
            chosen = parse_part(number) if colon else groups or next(iter(numbers), 4)
            if not isinstance(chosen, int):
                raise ArgumentError(f"compare: expected dwc, gwc or gwc:GROUPS, got {word!r}")
            wishes.append(make_wish(variant="gwc", groups=chosen, se=se))
        else:
            raise ArgumentError(f"compare: expected dwc, gwc or gwc:GROUPS, got {word!r}")
    return wishes


def analyze_network(
    network: Network,
    wishes: Sequence[Wish],
    name: str,
    example: ExampleSpec,
    progress: Progress | None = None,
    *,
    skip_misfits: bool = False,
    saved: Plan | None = None,
    pairs: bool = False,
) -> FlopsReport:
    """The report on a prepared network; see `analyze`. Variants that convert nothing are left out.

    Args:
        network: From `prepare` or `open_source`.
        wishes: The variants.
        name: Of the model, for the report.
        example: What it was traced on.
        progress: As in `analyze`.
        skip_misfits: Leave out parts that divide no layer's channels, where `analyze` raises ArgumentError.
        saved: A finished plan, counted as one more variant; if it has pairs, the others take pairs, too.
        pairs: As in `analyze`.
    """
    candidates = network.candidates(pairs or bool(saved and saved.absorbed))
    requests = [request for wish in wishes if (request := _request(wish, candidates, skip_misfits))]
    if saved and saved.converted and (change := saved.converted[0].change):
        requests.append(Request(change.variant, None, None, saved))
    tell = progress or (lambda what, done, total: None)
    tell("standard", 0, len(requests) + 1)
    counter = _Counter(network)
    variants = [counter.standard_report(len(candidates))]
    for done, request in enumerate(requests, start=1):
        tell(_title(request), done, len(requests) + 1)
        variants.append(counter.report(request))
    layers = _layer_reports(candidates, network, counter.analytic)
    return FlopsReport(name, example.shapes, tuple(variants), layers, replayed=not network.trace.on_meta)


def _request(wish: Wish, candidates: list[Candidate], skip_misfits: bool) -> Request | None:
    try:
        plan = make_plan(candidates, Rules(wish))
    except ArgumentError:
        if skip_misfits and wish.variant == "hetconv":
            return None
        raise
    if not plan.converted:
        return None
    groups = wish.groups if wish.variant == "gwc" else None
    return Request(wish.variant, wish.p if wish.variant == "hetconv" else None, groups, plan)


def _title(request: Request) -> str:
    part = "PC" if request.p == "pc" else f"P={request.p}"
    return {"standard": "SE", "hetconv": part, "dwc": "DWC+PWC", "gwc": f"GWC{request.groups}+PWC"}[request.name]


class _Counter:
    """Counts of the standard network, held against each variant's."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.analytic = analytic_macs(network.model, network.trace)
        self.counts = count(network.model, network.inputs)
        self.params = _params(network.model)
        self.kinds = kinds_of(network.model)

    def standard_report(self, convolutions: int) -> VariantReport:
        dispatcher, thop = self.counts.dispatcher, self.counts.thop
        return VariantReport(
            name="standard",
            p=None,
            groups=None,
            se=False,
            converted_layers=0,
            kept_layers=convolutions,
            macs=_macs(self.analytic, thop, dispatcher, dispatcher),
            converted_macs=ConvertedMacs(0, 0, 0),
            ratio=Ratio(None, None, None, None),
            params=self.params,
            macs_reduced_pct=0.0,
            params_reduced_pct=0.0,
            notes=tuple(column_notes(self.analytic, dispatcher, thop, dispatcher, self.kinds)),
        )

    def report(self, request: Request) -> VariantReport:
        plan = request.plan
        analytic = analytic_macs(self.network.model, self.network.trace, plan)
        rewritten = apply_plan(meta_copy(self.network.model), plan)
        counts, executed = self._count(rewritten, plan)
        names = [layer.name for layer in plan.converted]
        replaced = [*names, *plan.absorbed]
        new = _over(counts.dispatcher, names)
        macs = _macs(analytic, counts.thop, counts.dispatcher, executed)
        params = _params(rewritten)
        kinds = self.kinds | dict.fromkeys(names, CONVERTED) | dict.fromkeys((join(n, "se") for n in names), SQUEEZES)
        return VariantReport(
            name=request.name,
            p=request.p,
            groups=request.groups,
            se=any(layer.change and layer.change.se for layer in plan.converted),
            converted_layers=len(plan.converted),
            kept_layers=len(plan.kept),
            macs=macs,
            converted_macs=ConvertedMacs(_over(analytic, names), new, _over(executed, names)),
            ratio=Ratio(
                EQUATION[request.name],
                ratio_by_equation(plan, self.network.trace),
                _ratio(_over(analytic, names), _over(self.analytic, replaced)),
                _ratio(new, _over(self.counts.dispatcher, replaced)),
            ),
            params=params,
            macs_reduced_pct=_reduced(macs.dispatcher, sum(self.counts.dispatcher.values())),
            params_reduced_pct=_reduced(params, self.params),
            notes=(
                *column_notes(analytic, counts.dispatcher, counts.thop, executed, kinds),
                *plan_notes(plan),
            ),
        )

    def _count(self, rewritten: nn.Module, plan: Plan) -> tuple[Counts, Tally]:
        """Counts over the class-by-class form, and the dispatcher's over the form that runs."""
        layers = frozenset(layer.name for layer in plan.converted)
        measure = self._whole if self.network.trace.on_meta else self._replay
        with_form = {}
        for form in FORMS:
            use_implementation(rewritten, form)
            with_form[form] = measure(rewritten, plan, thop=form == "reference")
        counts, executed = with_form["reference"], with_form["auto"].dispatcher
        return Counts(by_layer(counts.dispatcher, layers), by_layer(counts.thop, layers)), by_layer(executed, layers)

    def _whole(self, rewritten: nn.Module, plan: Plan, thop: bool) -> Counts:
        inputs = self.network.inputs
        return count(rewritten, inputs) if thop else Counts(count_dispatched(rewritten, inputs), {})

    def _replay(self, rewritten: nn.Module, plan: Plan, thop: bool) -> Counts:
        """The standard network's own counts, with each converted layer's calls run again on the new layer.

        For networks whose calls depend on values: a rewritten detector finds other boxes, and so does other work.
        """
        replaced = {layer.name for layer in plan.converted} | plan.absorbed
        total = Counts(
            *(
                {n: macs for n, macs in tally.items() if n not in replaced}
                for tally in (self.counts.dispatcher, self.counts.thop)
            )
        )
        for layer in plan.converted:
            part = replay(rewritten.get_submodule(layer.name), self.network.trace.of(layer.name), thop=thop)
            add(total.dispatcher, part.dispatcher, layer.name)
            add(total.thop, part.thop, layer.name)
        return total


def _macs(analytic: Tally, thop: Tally, dispatcher: Tally, executed: Tally) -> Macs:
    return Macs(*(sum(tally.values()) for tally in (analytic, thop, dispatcher, executed)))


def _over(tally: Tally, names: Iterable[str]) -> int:
    return sum(tally.get(name, 0) for name in names)


def _ratio(new: int, old: int) -> float | None:
    return new / old if old else None


def _reduced(new: int, old: int) -> float:
    return 100 * (old - new) / old if old else 0.0


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _layer_reports(candidates: list[Candidate], network: Network, analytic: Tally) -> tuple[LayerReport, ...]:
    widest = make_plan(candidates, Rules(Wish(p="pc")))  # P = M divides every layer: what this keeps stays at every P
    pairs = {layer.name: layer.absorbs[-1] for layer in widest.converted if layer.absorbs}
    pairs |= {pointwise: depthwise for depthwise, pointwise in pairs.items()}
    return tuple(
        _layer_report(candidate, planned.reason, pairs.get(candidate.name), network, analytic)
        for candidate, planned in zip(candidates, widest.layers, strict=True)
    )


def _layer_report(
    candidate: Candidate, reason: str | None, pair: str | None, network: Network, analytic: Tally
) -> LayerReport:
    calls = network.trace.of(candidate.name)
    g = candidate.geometry
    return LayerReport(
        name=candidate.name,
        m=g.in_channels,
        n=g.out_channels,
        kernel=g.kernel,
        stride=g.stride,
        output=(calls[-1].output[-2], calls[-1].output[-1]) if calls else None,
        calls=len(calls),
        macs=analytic.get(candidate.name, 0),
        params=g.weights + (g.out_channels if g.bias else 0),
        convertible=pair is not None or not (candidate.obstacle or in_kind(g)),
        reason=None if pair else reason,
        pair=pair,
    )
