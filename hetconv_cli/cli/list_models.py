"""`hetconv list`."""

from typing import Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import Debug, Format, FormatOption, Json


def list_models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="A shell pattern, such as 'resnet*'.")] = "*",
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show torchvision's models and the paper's networks, and what of them can be converted.

    Example: hetconv list 'resnet*'
    """
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.models.catalog import match, nearest
    from hetconv_cli.render.catalog import catalog_csv, catalog_json, catalog_table

    entries = match(pattern)
    if not entries:
        near = nearest(pattern.strip("*?"))
        hint = f"; did you mean {', '.join(near)}?" if near else "; `hetconv list` shows all"
        raise ArgumentError(f"no model matches {pattern!r}{hint}")
    output.report(
        Format.json if json else format,
        structure=lambda: catalog_json(entries),
        lines=lambda: catalog_csv(entries),
        tables=lambda: [catalog_table(entries)],
    )
