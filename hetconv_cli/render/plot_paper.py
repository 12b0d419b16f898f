"""Pictures of `reproduce` and `sweep`. matplotlib is imported inside, so that only who plots pays for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetconv_cli.files import replacing
from hetconv_cli.measure.sweep import Sweep
from hetconv_cli.paper.beside import MILLION, ReproducedTable, Row
from hetconv_cli.paper.printed import printed_accuracies
from hetconv_cli.render.numbers import Unit, scale_for
from hetconv_cli.render.plot_labels import Label, write_labels
from hetconv_cli.render.sweep import crossing_lines

_OURS, _PRINTED, _QUOTED = "#3182bd", "#9ecae1", "#888888"
_CURVES = {
    "hetconv": ("HetConv", "#e6550d", "o"),
    "gwc": ("GWC+PWC, G = P", "#3182bd", "s"),
    "dwc": ("DWC+PWC", "#31a354", "D"),
}


def plot_reproduced(tables: Sequence[ReproducedTable], path: Path) -> None:
    """For each table: printed accuracy over our MACs, and our MACs beside the printed ones."""
    pyplot = _pyplot()
    height = sum(_height(table) for table in tables)
    figure, axes = pyplot.subplots(
        len(tables),
        2,
        figsize=(13, height),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"height_ratios": [_height(table) for table in tables]},
    )
    labels = []
    for (left, right), table in zip(axes, tables, strict=True):
        labels.append(_draw_accuracy(left, table))
        _draw_beside(right, table)
    figure.draw_without_rendering()  # lays it out: only now do points have their places
    for left, names in zip(axes[:, 0], labels, strict=True):
        write_labels(left, names, fontsize=7)
    _save(figure, path)


def _height(table: ReproducedTable) -> float:
    return max(3.6, 0.34 * len(table.rows) + 1.4)


def _draw_accuracy(axes: Any, table: ReproducedTable) -> list[Label]:
    """MACs as per cent of the standard network's, which is all that is printed of quoted rows; returns the names."""
    labels = []
    what, accuracies = printed_accuracies(row.printed for row in table.rows)
    for row, accuracy in zip(table.rows, accuracies, strict=True):
        left = _macs_left(row)
        if accuracy is None or left is None:
            continue
        quoted = row.kind == "quoted"
        axes.plot(left, accuracy, marker="x" if quoted else "o", color=_QUOTED if quoted else _OURS, linestyle="none")
        color = _QUOTED if quoted else "black"
        labels.append(Label(_short(row.model), left, accuracy, color, above=row.model.endswith("_SE")))
    axes.margins(0.12)
    axes.set_xscale("log")  # most variants lie close together near the cheap end
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: "" if x == 90 else f"{x:g}")  # 90 and 100 would touch
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel("MACs, % of the standard network (ours; x: quoted)")
    axes.set_ylabel(f"{what} %, printed, not rerun")
    axes.set_title(f"{table.name}: {table.title}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return labels


def _macs_left(row: Row) -> float | None:
    if row.ours:
        return 100 - row.ours.macs_reduced_pct
    printed = row.printed.get("macs_reduced_pct")
    return None if printed is None else 100 - printed


def _draw_beside(axes: Any, table: ReproducedTable) -> None:
    """Bars of MACs where they are printed, else of the reductions."""
    in_millions = any(row.printed.get(column) for row in table.rows for column in ("macs_m", "macs_g"))
    rows = [row for row in table.rows if row.ours and (in_millions or row.printed.get("macs_reduced_pct"))][::-1]
    places = range(len(rows))
    ours = [_bar(row, in_millions, printed=False) for row in rows]
    printed = [_bar(row, in_millions, printed=True) for row in rows]
    bars = axes.barh([place + 0.19 for place in places], ours, 0.36, color=_OURS, label="ours, counted")
    axes.bar_label(bars, fmt="{:,.2f}", fontsize=7, padding=2)
    known = [(place, value) for place, value in zip(places, printed, strict=True) if value is not None]
    bars = axes.barh(
        [place - 0.19 for place, _ in known], [value for _, value in known], 0.36, color=_PRINTED, label="printed"
    )
    axes.bar_label(bars, fmt="{:,.2f}", fontsize=7, padding=2)
    axes.set_yticks(places, [row.model for row in rows], fontsize=8)
    axes.set_xlabel("million MACs" if in_millions else "MACs cut, %")
    axes.margins(x=0.14)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(row: Row, in_millions: bool, printed: bool) -> float | None:
    if printed:
        giga = row.printed.get("macs_g")
        if in_millions:
            return 1000 * giga if giga is not None else row.printed.get("macs_m")
        return row.printed.get("macs_reduced_pct")
    if row.ours is None:
        return None
    return row.ours.dispatcher / MILLION if in_millions else row.ours.macs_reduced_pct


def _short(model: str) -> str:
    return model.split("_", 1)[-1]


def plot_sweep(sweep: Sweep, path: Path, unit: Unit) -> None:
    """MACs, parameters and the ratio of the converted layers over P, with the crossing of equation (6) marked."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    scale = scale_for(sweep.standard.macs, unit)
    last = 2 * max(*(point.p for point in sweep.points if isinstance(point.p, int)), 2, sweep.crossings.dwc_at or 2)
    _draw_curves(axes[0], sweep, lambda point: point.macs / scale.divisor, last)
    _draw_curves(axes[1], sweep, lambda point: point.params / MILLION, last)
    _draw_curves(axes[2], sweep, lambda point: point.ratio, last)
    _mark_crossing(axes[0], sweep, lambda point: point.macs / scale.divisor)
    _mark_crossing(axes[2], sweep, lambda point: point.ratio)
    for one, label in zip(axes, (f"{scale.name}, whole network", "million parameters", "ratio"), strict=True):
        one.set_ylabel(label)
    axes[0].set_title(f"{sweep.model}: MACs by equation")
    axes[1].set_title("parameters")
    axes[2].set_title("converted layers / what they replace")
    figure.supxlabel("\n".join(["P (PC: P = M of each layer)", *crossing_lines(sweep.crossings)]), fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _draw_curves(axes: Any, sweep: Sweep, value: Any, last: float) -> None:
    axes.axhline(value(sweep.standard), color="black", linewidth=0.8, linestyle=":", label="standard")
    for variant, (label, color, marker) in _CURVES.items():
        points = [point for point in sweep.points if point.variant == variant]
        if variant == "dwc":
            axes.axhline(value(points[0]), color=color, linewidth=1.2, linestyle="--", label=label)
        elif points:
            curve = sorted((point.p, value(point)) for point in points if isinstance(point.p, int))
            axes.plot(
                [p for p, _ in curve],
                [height for _, height in curve],
                color=color,
                marker=marker,
                label=label,
                markersize=5,
            )
            whole = [value(point) for point in points if point.p == "pc"]
            axes.plot([last] * len(whole), whole, color=color, marker=marker, markersize=5)
    parts = sorted({point.p for point in sweep.points if isinstance(point.p, int)})
    pc = any(point.p == "pc" for point in sweep.points)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*parts, *([last] if pc else [])], [*map(str, parts), *(["PC"] if pc else [])])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_crossing(axes: Any, sweep: Sweep, value: Any) -> None:
    """Where HetConv costs what DWC+PWC costs; from the last part on towards it the curve is drawn as it would go on."""
    crossing = sweep.crossings.dwc_at
    if crossing is None:
        return
    pairs = next(value(point) for point in sweep.points if point.variant == "dwc")
    label = f"equation (6): crossing at P = {crossing:.0f}"
    axes.plot(crossing, pairs, color="black", marker="*", markersize=11, linestyle="none", label=label, zorder=3)
    fits = [point for point in sweep.points if point.variant == "hetconv" and not point.misfits]
    last, height = max(((point.p, value(point)) for point in fits if isinstance(point.p, int)), default=(crossing, 0))
    if last < crossing:
        axes.plot([last, crossing], [height, pairs], color=_CURVES["hetconv"][1], linestyle=":")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    _pyplot().close(figure)
