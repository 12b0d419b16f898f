"""The paper's tables as printed. The only code that reads them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hetconv_cli.strict_yaml import read_mapping

# Columns that came from training or from other people's training; nothing here runs that again.
ACCURACIES = {
    "accuracy_pct": "accuracy",
    "error_pct": "accuracy",
    "top1_pct": "top-1 accuracy",
    "top5_pct": "top-5 accuracy",
    "top1_error_pct": "top-1 accuracy",
}
TRAINED = frozenset(ACCURACIES)


@dataclass(frozen=True)
class PrintedTable:
    """A table of the paper: by row its figures, by column; None where nothing is printed."""

    name: str
    title: str
    rows: Mapping[str, Mapping[str, float | None]]


@cache
def printed_tables() -> dict[str, PrintedTable]:
    """Tables 1 to 6, by name."""
    text = files("hetconv_cli.paper").joinpath("tables.yaml").read_text(encoding="utf-8")
    return {name: _table(name, data) for name, data in read_mapping(text, "tables.yaml").items()}


def _table(name: str, data: dict[str, Any]) -> PrintedTable:
    columns = data["columns"][1:]
    rows = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in data["rows"]}
    return PrintedTable(name, data["title"], rows)


def printed_accuracies(rows: Iterable[Mapping[str, float | None]]) -> tuple[str, list[float | None]]:
    """What is best known of a table's rows, and each row's: the trained column in which most rows have a figure."""
    rows = list(rows)
    columns = [column for column in ACCURACIES if any(column in row for row in rows)]
    column = max(columns, key=lambda name: sum(row.get(name) is not None for row in rows))
    values = [row.get(column) for row in rows]
    if "error" in column:
        values = [None if value is None else 100 - value for value in values]
    return ACCURACIES[column], values
