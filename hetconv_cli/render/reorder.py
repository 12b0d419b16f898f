"""The report of a reordering."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from hetconv_cli.conversion.reorder.report import ReorderReport
from hetconv_cli.render.table import Table

_FEW_NAMES = 3


def reorder_json(report: ReorderReport) -> dict[str, Any]:
    """The documented structure."""
    return asdict(report)


def reorder_table(report: ReorderReport) -> Table:
    """Layer by layer, then what could not move."""
    rows = [[layer.name, str(layer.p), _percent(layer.before), _percent(layer.after)] for layer in report.layers]
    return Table(["layer", "P", "energy kept, before", "reordered"], rows, [reorder_line(report)], _below(report))


def reorder_line(report: ReorderReport) -> str:
    """All of it in one line."""
    return (
        f"energy kept in the classes: {_percent(report.before)} -> {_percent(report.after)};"
        f" {report.free} of {len(report.streams)} orders of channels were free; {report.seconds:.1f} s"
    )


def _below(report: ReorderReport) -> list[str]:
    reasons = Counter(stream.pinned for stream in report.streams if stream.pinned)
    lines = [f"  kept in its order: {why}" + (f" ({count})" if count > 1 else "") for why, count in reasons.items()]
    lines.append(f"  same function in float64, to {report.error:.0e} of the output's largest value")
    if report.unseen:
        more = ", ..." if len(report.unseen) > _FEW_NAMES else ""
        names = ", ".join(report.unseen[:_FEW_NAMES]) + more
        lines.append(f"  note: {len(report.unseen)} tensors were never read and stay as they were ({names})")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
