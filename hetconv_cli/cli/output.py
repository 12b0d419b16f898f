"""stdout is data, stderr is talk."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hetconv_cli.cli.options import Format
from hetconv_cli.render.table import Table, to_markdown, to_text

Progress = Callable[[str, int, int], None]


BROKEN_PIPE = 141  # what a shell reports of a program that a closed pipe ended


def data(text: str) -> None:
    """Writes a report to stdout; a reader that has left ends the program silently."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        raise SystemExit(BROKEN_PIPE) from None


def json_data(structure: dict[str, Any]) -> None:
    """Writes JSON, and nothing else, to stdout."""
    data(json.dumps(structure, indent=2))


def table(content: Table) -> None:
    """Writes a table to stdout: as wide as the terminal, or uncut into a pipe or file."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    color = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    data(to_text(content, width=width, color=color))


def report(
    format: Format,
    *,
    structure: Callable[[], dict[str, Any]],
    lines: Callable[[], str],
    tables: Callable[[], Sequence[Table]],
) -> None:
    """Writes a report in the format asked for: `structure` as JSON, `lines` as CSV, or `tables`."""
    if format is Format.json:
        json_data(structure())
    elif format is Format.csv:
        data(lines())
    elif format is Format.markdown:
        data("\n".join(to_markdown(content) for content in tables()))
    else:
        for index, content in enumerate(tables()):
            if index:
                data("")
            table(content)


def talk(line: str) -> None:
    """Says something to the person at the terminal."""
    print(line, file=sys.stderr)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar on stderr, on a terminal only; the yielded function moves it."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda what, done, total: bar.update(task, description=f"{title}: {what}", completed=done, total=total)
