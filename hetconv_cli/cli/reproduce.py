"""`hetconv reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import Debug, Force, Format, FormatOption, Json

if TYPE_CHECKING:
    from hetconv_cli.paper.beside import ReproducedTable


def reproduce(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[table1 ... table6 | all]", help="Which [default: all].")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw accuracy over MACs, and ours beside the printed."),
    ] = None,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rebuild and count every network of the paper's tables, beside what it printed.

    Examples: hetconv reproduce table1; hetconv reproduce all --json
    """
    from hetconv_cli.paper.beside import reproduce as rebuild_and_compare
    from hetconv_cli.render.plot import check_plot_target
    from hetconv_cli.render.plot_paper import plot_reproduced

    if plot is not None:
        check_plot_target(plot, overwrite=force)
    with output.progress("reproduce") as progress:
        reproduced = rebuild_and_compare(tables or ["all"], progress)
    if plot is not None:
        plot_reproduced(reproduced, plot)
        output.talk(f"wrote {plot}")
    _write(reproduced, Format.json if json else format)


def _write(reproduced: "tuple[ReproducedTable, ...]", format: Format) -> None:
    from hetconv_cli.render.reproduce import reproduce_csv, reproduce_json, reproduce_table

    output.report(
        format,
        structure=lambda: reproduce_json(reproduced),
        lines=lambda: reproduce_csv(reproduced),
        tables=lambda: [reproduce_table(table) for table in reproduced],
    )
