"""One table, four ways to write it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

Align = Literal["left", "right"]
UNCUT = 10_000  # columns of a pipe or file: nothing is ever cut or folded there


@dataclass(frozen=True)
class Table:
    """Headers, rows of text, and lines to read before and after it. A rule is drawn above the last `totals` rows."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    above: Sequence[str] = ()
    below: Sequence[str] = ()
    left: frozenset[int] = field(default=frozenset({0}))  # columns of words; the others hold numbers

    def align(self, column: int) -> Align:
        """How a column is set."""
        return "left" if column in self.left else "right"


def to_text(table: Table, *, width: int | None = None, color: bool = False) -> str:
    """For people. `width` is the terminal's; None: not a terminal, so nothing is folded."""
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, header in enumerate(table.headers):
        grid.add_column(header, justify=table.align(index), no_wrap=width is None, overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width or UNCUT,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for line in table.above:
        console.print(line, style="bold" if color else None)
    if table.above:
        console.print()
    if table.rows:
        console.print(grid)
    for line in table.below:
        console.print(line, soft_wrap=width is None)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def to_markdown(table: Table) -> str:
    """A GitHub table with its lines around it."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    marks = ["---" if table.align(index) == "left" else "---:" for index in range(len(table.headers))]
    grid = [line(table.headers), line(marks), *map(line, table.rows)]
    parts = [
        " ".join(table.above),
        "\n".join(grid) if table.rows else "",
        "\n".join(f"- {note}" for note in table.below),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_csv(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Raw values, one line each; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)
    return out.getvalue()
