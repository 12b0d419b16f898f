"""Ours beside the paper's: the report of `hetconv reproduce`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hetconv_cli.errors import ArgumentError
from hetconv_cli.paper.printed import PrintedTable, printed_tables
from hetconv_cli.paper.rebuilt import Figures, Progress, rebuild

MILLION = 1e6


@dataclass(frozen=True)
class Row:
    """A row: what is printed by column, what ours is (None: quoted from its authors), and how far apart they are.

    `deviation_pct` is ours over printed, in per cent of the printed figure; for reductions, which are per cent
    themselves, it is the difference in points.
    """

    model: str
    kind: Literal["rebuilt", "quoted"]
    printed: Mapping[str, float | None]
    ours: Figures | None
    deviation_pct: Mapping[str, float]


@dataclass(frozen=True)
class ReproducedTable:
    """One of the paper's tables with ours beside it."""

    name: str
    title: str
    rows: tuple[Row, ...]


def reproduce(names: Iterable[str] = ("all",), progress: Progress | None = None) -> tuple[ReproducedTable, ...]:
    """Builds, rewrites and counts the network of every row, and sets the printed figures beside it.

    Args:
        names: Of "table1" ... "table6", or "all".
        progress: Called before each network with what it is, how many are done, how many there are.

    Raises:
        ArgumentError: a name that is none of these.
    """
    wanted = _wanted(tuple(names))
    ours = rebuild(wanted, progress)
    return tuple(_beside(printed_tables()[name], ours[name]) for name in wanted)


def _wanted(names: tuple[str, ...]) -> list[str]:
    known = list(printed_tables())
    for name in names:
        if name.lower() not in (*known, "all"):
            raise ArgumentError(f"unknown table {name!r}: expected {', '.join(known)} or all")
    chosen = {name.lower() for name in names}
    return [name for name in known if not chosen or chosen & {name, "all"}]


def _beside(table: PrintedTable, ours: Mapping[str, Figures]) -> ReproducedTable:
    rows = [_row(model, printed, ours.get(model)) for model, printed in table.rows.items()]
    rows += [_row(model, {}, figures) for model, figures in ours.items() if model not in table.rows]
    return ReproducedTable(table.name, table.title, tuple(rows))


def _row(model: str, printed: Mapping[str, float | None], ours: Figures | None) -> Row:
    if ours is None:
        return Row(model, "quoted", printed, None, {})
    comparable = {
        "macs_m": ours.dispatcher / MILLION,
        "macs_g": ours.dispatcher / MILLION / 1000,
        "params_m": ours.weights / MILLION,
    }
    points = {"macs_reduced_pct": ours.macs_reduced_pct, "params_reduced_pct": ours.params_reduced_pct}
    deviation = {}
    for column, figure in printed.items():
        if figure is not None and column in comparable:
            deviation[column] = 100 * (comparable[column] - figure) / figure
        elif figure is not None and column in points:
            deviation[column] = points[column] - figure
    return Row(model, "rebuilt", printed, ours, deviation)
