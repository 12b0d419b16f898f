"""The report of `hetconv flops`."""

from dataclasses import asdict
from typing import Any

from hetconv_cli.measure.report import FlopsReport, LayerReport, VariantReport
from hetconv_cli.render.numbers import Unit, scale_for
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.flops/1"
_UNIT = {"mac": "MAC", "flops": "FLOPs"}


def flops_json(report: FlopsReport, unit: Unit) -> dict[str, Any]:
    """The documented structure; counts in `unit`, with `params` and ratios as they are."""
    factor = 2 if unit == "flops" else 1
    variants = [asdict(variant) for variant in report.variants]
    for variant in variants:
        for counts in ("macs", "converted_macs"):
            variant[counts] = {key: factor * value for key, value in variant[counts].items()}
    layers = [asdict(layer) for layer in report.layers]
    for layer in layers:
        layer["macs"] *= factor
    shapes = [list(shape) for shape in report.input]
    return {
        "schema": SCHEMA,
        "model": report.model,
        "input": shapes[0] if len(shapes) == 1 else shapes,
        "unit": _UNIT[unit],
        "replayed": report.replayed,
        "variants": variants,
        "layers": layers,
    }


def flops_csv(report: FlopsReport, unit: Unit) -> str:
    """One line a variant."""
    factor = 2 if unit == "flops" else 1
    headers = ["model", "variant", "p", "groups", "se", "unit", "analytic", "thop", "dispatcher", "executed"]
    headers += ["equation", "by_equation", "measured_ratio", "params", "macs_reduced_pct", "params_reduced_pct"]
    rows = [
        [
            *(report.model, v.name, v.p, v.groups, v.se, _UNIT[unit]),
            *(factor * getattr(v.macs, column) for column in ("analytic", "thop", "dispatcher", "executed")),
            *(v.ratio.equation, v.ratio.by_equation, v.ratio.measured),
            *(v.params, v.macs_reduced_pct, v.params_reduced_pct),
        ]
        for v in report.variants
    ]
    return to_csv(headers, rows)


def layers_csv(report: FlopsReport, unit: Unit) -> str:
    """One line a Conv2d."""
    factor = 2 if unit == "flops" else 1
    headers = ["model", "layer", "m", "n", "kernel", "stride", "output", "calls", "unit", "macs", "params"]
    rows = [
        [
            *(report.model, x.name, x.m, x.n, _by(x.kernel), _by(x.stride), _by(x.output), x.calls),
            *(_UNIT[unit], factor * x.macs, x.params, x.convertible, x.reason, x.pair),
        ]
        for x in report.layers
    ]
    return to_csv([*headers, "convertible", "reason", "pair"], rows)


def flops_table(report: FlopsReport, unit: Unit) -> Table:
    """A row a variant: every way of counting, and the ratio by equation beside the counted one."""
    standard = report.variants[0]
    scale = scale_for(standard.macs.dispatcher, unit)
    notes = _Notes()
    rows = [
        [
            title(variant),
            *(scale.show(getattr(variant.macs, column)) for column in ("analytic", "dispatcher", "thop", "executed")),
            *_ratios(variant),
            f"{variant.params / 1e6:,.{2 if variant.params >= 1e4 else 6}f}",
            f"{-variant.macs_reduced_pct:+.2f} %" if variant.name != "standard" else "-",
            notes.marks(variant.notes),
        ]
        for variant in report.variants
    ]
    headers = ["variant", f"analytic {scale.name}", "counted", "thop", "executed"]
    headers += ["by equation", "counted", "params M", "MACs", "notes"]
    return Table(headers, rows, [_headline(report, unit)], _below(report, notes), left=frozenset({0, 9}))


def layers_table(report: FlopsReport, unit: Unit) -> Table:
    """A row a Conv2d of the standard network."""
    scale = scale_for(max((layer.macs for layer in report.layers), default=0), unit)
    rows = [
        [
            layer.name,
            f"{layer.m} -> {layer.n}",
            _by(layer.kernel),
            _by(layer.stride),
            _by(layer.output) or "never ran",
            str(layer.calls),
            scale.show(layer.macs),
            f"{layer.params:,}",
            layer.reason or (f"pair with {layer.pair}" if layer.pair else "convertible"),
        ]
        for layer in report.layers
    ]
    headers = ["layer", "channels", "kernel", "stride", "output", "calls", scale.name, "params", "HetConv"]
    return Table(headers, rows, left=frozenset({0, 1, 8}))


def title(variant: VariantReport) -> str:
    """What a variant is called in tables and plots."""
    name = {"standard": "standard", "dwc": "DWC+PWC", "gwc": f"GWC{variant.groups}+PWC"}.get(variant.name)
    if name is None:
        name = "PC (P=M)" if variant.p == "pc" else "as saved" if variant.p is None else f"P={variant.p}"
    return name + (" + SE" if variant.se else "")


class _Notes:
    """Numbers notes as they come up: the same sentence keeps its letter."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def marks(self, notes: tuple[str, ...]) -> str:
        for note in notes:
            if note not in self.sentences:
                self.sentences.append(note)
        return " ".join(letter(self.sentences.index(note)) for note in notes)


def letter(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _ratios(variant: VariantReport) -> tuple[str, str]:
    ratio = variant.ratio
    if ratio.equation is None or ratio.by_equation is None or ratio.measured is None:
        return "-", "-"
    return f"({ratio.equation}) {ratio.by_equation:.4f}", f"{ratio.measured:.4f}"


def _headline(report: FlopsReport, unit: Unit) -> str:
    shapes = ", ".join("x".join(map(str, shape)) for shape in report.input)
    free = sum(not layer.reason for layer in report.layers)
    pairs = sum(layer.pair is not None for layer in report.layers) // 2  # both convolutions name each other
    as_pairs = f" ({2 * pairs} as {pairs} pair{'s' if pairs > 1 else ''})" if pairs else ""
    unit_words = "unit FLOPs (2 x MACs)" if unit == "flops" else "unit MAC (FLOPs = 2 x MACs)"
    return f"{report.model}  {shapes}  {unit_words}  {free} of {len(report.layers)} Conv2d can be converted{as_pairs}"


def _below(report: FlopsReport, notes: _Notes) -> list[str]:
    lines = [f"  [{letter(index)}] {note}" for index, note in enumerate(notes.sentences)]
    lines.append(
        "  analytic: the paper's equations and shapes. counted: torch's dispatcher over the class-by-class form."
        " executed: the form that runs here."
    )
    if report.replayed:
        lines.append(
            "  This network's work depends on the values it sees (boxes found), so every variant is counted on the"
            " calls of ONE run of the standard network."
        )
    if len(report.variants) == 1:
        lines.append(f"  {nothing_to_convert(report.layers)}")
    return lines


def nothing_to_convert(layers: tuple[LayerReport, ...]) -> str:
    """Why a network has no HetConv variant, in one sentence."""
    if not layers:
        return "Nothing to convert: this network has no Conv2d."
    reasons = sorted({layer.reason or "not asked for" for layer in layers})
    return f"Nothing to convert: its {len(layers)} Conv2d are kept ({'; '.join(reasons[:5])})."


def _by(pair: tuple[int, int] | None) -> str:
    return "" if pair is None else f"{pair[0]}x{pair[1]}"
