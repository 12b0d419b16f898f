"""The report of `hetconv reproduce`."""

from collections.abc import Sequence
from typing import Any

from hetconv_cli.paper.beside import MILLION, ReproducedTable, Row
from hetconv_cli.paper.printed import TRAINED
from hetconv_cli.paper.rebuilt import Figures
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.reproduce/1"
NOT_RERUN = "printed, not rerun"
_WORDS = {
    "accuracy_pct": "accuracy %",
    "error_pct": "error %",
    "top1_pct": "top-1 %",
    "top5_pct": "top-5 %",
    "top1_error_pct": "top-1 error %",
}


def reproduce_json(tables: Sequence[ReproducedTable]) -> dict[str, Any]:
    """The documented structure."""
    return {
        "schema": SCHEMA,
        "unit": "MAC",
        "trained": f"accuracies and errors: {NOT_RERUN}",
        "tables": [
            {"table": table.name, "title": table.title, "rows": [_json_row(row) for row in table.rows]}
            for table in tables
        ],
    }


def _json_row(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "kind": row.kind,
        "printed": dict(row.printed),
        "ours": None if row.ours is None else _ours(row.ours),
        "deviation_pct": dict(row.deviation_pct),
    }


def _ours(figures: Figures) -> dict[str, Any]:
    return {
        "macs_m": figures.dispatcher / MILLION,
        "params_m": figures.weights / MILLION,
        "macs_reduced_pct": figures.macs_reduced_pct,
        "params_reduced_pct": figures.params_reduced_pct,
        "macs": {"analytic": figures.analytic, "thop": figures.thop, "dispatcher": figures.dispatcher},
        "additions_m": figures.additions / MILLION,
        "all_params": figures.params,
        "converted_layers": figures.converted_layers,
    }


def reproduce_csv(tables: Sequence[ReproducedTable]) -> str:
    """One line a row of the paper's tables; what is trained is printed, not rerun."""
    printed = list(dict.fromkeys(column for table in tables for row in table.rows for column in row.printed))
    ours = ["macs_m", "params_m", "macs_reduced_pct", "params_reduced_pct", "additions_m", "all_params"]
    counts = ["analytic", "thop", "dispatcher"]
    headers = ["table", "model", "kind", *(f"printed_{column}" for column in printed)]
    headers += [*(f"ours_{column}" for column in ours), *(f"ours_macs_{way}" for way in counts)]
    headers += [f"deviation_{column}" for column in printed if column not in TRAINED]
    lines = []
    for table in tables:
        for row in table.rows:
            figures = _ours(row.ours) if row.ours else {"macs": {}}
            lines.append(
                [
                    *(table.name, row.model, row.kind),
                    *(row.printed.get(column) for column in printed),
                    *(figures.get(column) for column in ours),
                    *(figures["macs"].get(way) for way in counts),
                    *(row.deviation_pct.get(column) for column in printed if column not in TRAINED),
                ]
            )
    return to_csv(headers, lines)


def reproduce_table(table: ReproducedTable) -> Table:
    """A row a row: what is printed, ours, and how far ours is from it."""
    columns = list(dict.fromkeys(column for row in table.rows for column in row.printed))
    trained = [column for column in columns if column in TRAINED]
    giga = "macs_g" in columns or any(row.ours and row.ours.dispatcher > 1e9 for row in table.rows)
    unit = "GMAC" if giga else "MMAC"
    headers = ["model", *(f"{_WORDS[column]} [a]" for column in trained)]
    headers += [f"{unit} printed", "ours", "thop", "off", "+ additions M [b]"]
    headers += ["weights M printed", "ours", "off"] if "params_m" in columns else ["weights M ours"]
    headers += ["MACs cut printed", "ours", "off"]
    headers += ["weights cut printed", "ours", "off"] if "params_reduced_pct" in columns else []
    rows = [_row(row, trained, giga, columns) for row in table.rows]
    return Table(headers, rows, [f"{table.name}: {table.title}"], _below(table))


def _row(row: Row, trained: list[str], giga: bool, columns: list[str]) -> list[str]:
    printed, ours, off = row.printed, row.ours, row.deviation_pct
    size, digits = (1e9, 3) if giga else (MILLION, 2)
    macs = "macs_g" if "macs_g" in columns else "macs_m"
    cells = [f"{row.model} (quoted)" if row.kind == "quoted" else row.model]
    cells += [_number(printed.get(column), 2) for column in trained]
    cells += [
        _number(printed.get(macs), 2),
        _number(ours.dispatcher / size if ours else None, digits),
        _number(ours.thop / size if ours else None, digits),
        _percent(off.get(macs)),
        _number(ours.additions / MILLION if ours and ours.additions else None, 3),
    ]
    weights = _number(ours.weights / MILLION if ours else None, 3)
    if "params_m" in columns:
        cells += [_number(printed.get("params_m"), 2), weights, _percent(off.get("params_m"))]
    else:
        cells.append(weights)
    for column in ("macs_reduced_pct", "params_reduced_pct"):
        if column in columns or column == "macs_reduced_pct":
            own = getattr(ours, column) if ours else None
            points = f"{off[column]:+.2f}" if column in off else "-"
            cells += [_number(printed.get(column), 2), _number(own, 2), points]
    return cells


def _below(table: ReproducedTable) -> list[str]:
    differ = [row.model for row in table.rows if row.ours and row.ours.analytic != row.ours.dispatcher]
    equations = f"the equations differ in {', '.join(differ)}" if differ else "the equations give the same"
    lines = [
        f"  [a] {NOT_RERUN}.",
        "  [b] what the paper's figure adds to the MACs of weights, as docs/paper.md tells; not in ours.",
        f"  ours: torch's dispatcher; {equations}. off: per cent of the printed figure; points for cuts.",
    ]
    quoted = [row.model for row in table.rows if row.kind == "quoted"]
    if quoted:
        lines.append(f"  quoted from their authors, nothing rebuilt: {', '.join(quoted)}.")
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"
