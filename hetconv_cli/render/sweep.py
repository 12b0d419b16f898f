"""The report of `hetconv sweep`."""

from dataclasses import asdict
from typing import Any

from hetconv_cli.measure.sweep import Crossings, Point, Sweep
from hetconv_cli.render.numbers import Unit, percent, scale_for
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.sweep/1"


def sweep_json(sweep: Sweep, unit: Unit) -> dict[str, Any]:
    """The documented structure; MACs in `unit`."""
    factor = 2 if unit == "flops" else 1
    points = [asdict(point) for point in (sweep.standard, *sweep.points)]
    for point in points:
        point["macs"] *= factor
    crossings = sweep.crossings
    return {
        "schema": SCHEMA,
        "model": sweep.model,
        "input": [list(shape) for shape in sweep.input],
        "unit": "FLOPs" if unit == "flops" else "MAC",
        "points": points,
        "crossings": {
            "layers": crossings.layers,
            "equation_6": {"p": crossings.dwc_at, "holds_in": crossings.dwc_holds_in},
            "equation_9": {"hetconv_below": crossings.gwc_below, "holds_in": crossings.gwc_holds_in},
        },
    }


def sweep_csv(sweep: Sweep, unit: Unit) -> str:
    """One line a point."""
    factor = 2 if unit == "flops" else 1
    headers = ("model", "variant", "p", "unit", "macs", "params", "converted_layers", "ratio", "misfits")
    word = "FLOPs" if unit == "flops" else "MAC"
    rows = [
        [sweep.model, x.variant, x.p, word, factor * x.macs, x.params, x.converted_layers, x.ratio, x.misfits]
        for x in (sweep.standard, *sweep.points)
    ]
    return to_csv(headers, rows)


def sweep_table(sweep: Sweep, unit: Unit) -> Table:
    """A row a part; HetConv and GWC+PWC at that part side by side, DWC+PWC at the end."""
    scale = scale_for(sweep.standard.macs, unit)
    by_part: dict[object, dict[str, Point]] = {}
    for point in sweep.points:
        by_part.setdefault(point.p, {})[point.variant] = point
    rows = [["standard", scale.show(sweep.standard.macs), "", "1.0000", _millions(sweep.standard), *[""] * 4]]
    for part, points in by_part.items():
        title = "DWC+PWC" if part is None else "PC (P=M)" if part == "pc" else f"P={part}"
        cells = [title]
        for variant in ("hetconv" if part is not None else "dwc", "gwc"):
            cells += _cells(points.get(variant), sweep, scale.show)
        rows.append(cells)
    headers = ["", f"HetConv {scale.name}", "MACs", "ratio", "params M", f"GWC(G=P)+PWC {scale.name}", "MACs"]
    headers += ["ratio", "params M"]
    shapes = ", ".join("x".join(map(str, shape)) for shape in sweep.input)
    return Table(headers, rows, [f"{sweep.model}  {shapes}  by equation, whole network"], _below(sweep))


def _cells(point: Point | None, sweep: Sweep, show: Any) -> list[str]:
    if point is None:
        return [""] * 4
    marked = "*" if point.misfits else ""
    return [show(point.macs) + marked, percent(point.macs, sweep.standard.macs), f"{point.ratio:.4f}", _millions(point)]


def _millions(point: Point) -> str:
    return f"{point.params / 1e6:,.2f}"


def _below(sweep: Sweep) -> list[str]:
    lines = [f"  {line}" for line in crossing_lines(sweep.crossings)]
    lines.append("  ratio: of the converted layers to the convolutions they replace. flops counts the same networks.")
    if any(point.misfits for point in sweep.points):
        lines.append("  * layers whose input channels P does not divide stay as they are.")
    return lines


def crossing_lines(crossings: Crossings) -> list[str]:
    """What equations (6) and (9) say, and where the curves cross in this network."""
    of = f"of {crossings.layers} layers"
    if crossings.dwc_at is None:
        six = "HetConv costs more than DWC+PWC at every P"
    else:
        six = f"HetConv costs what DWC+PWC costs at P = {crossings.dwc_at:.1f}, and less above it"
    nine = "GWC+PWC costs the same at every P = G"
    if crossings.gwc_below is not None:
        nine = f"HetConv costs {'less' if crossings.gwc_below else 'more'} than GWC+PWC at every P = G: no crossing"
    return [
        f"(6) {six}; at P = M it costs less in {crossings.dwc_holds_in} {of} (all, where M = N).",
        f"(9) {nine}; it costs less in {crossings.gwc_holds_in} {of} (all, where M = N).",
    ]
