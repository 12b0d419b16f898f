"""The report of `hetconv list`."""

from collections.abc import Sequence
from typing import Any

from hetconv_cli.models.catalog import CatalogEntry
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.list/1"
_HEADERS = ("model", "task", "input", "Conv2d", "convertible", "GMAC", "params M")


def catalog_table(entries: Sequence[CatalogEntry]) -> Table:
    """A row a model."""
    rows = [
        [
            e.name,
            e.task,
            e.example.describe(),
            str(e.conv2d),
            str(e.convertible),
            f"{e.gmac:,.3f}",
            f"{e.params_m:,.2f}",
        ]
        for e in entries
    ]
    below = [
        "  convertible: odd kernel above 1x1, no groups; of these, layers that read an image are kept.",
        "  Also a MODEL: timm/NAME, FILE.py:CALLABLE, a file that convert wrote.",
    ]
    return Table(_HEADERS, rows, below=below, left=frozenset({0, 1, 2}))


def catalog_csv(entries: Sequence[CatalogEntry]) -> str:
    """One line a model."""
    headers = ("model", "task", "input", "conv2d", "convertible", "gmac", "params_m")
    rows = [[e.name, e.task, e.example.describe(), e.conv2d, e.convertible, e.gmac, e.params_m] for e in entries]
    return to_csv(headers, rows)


def catalog_json(entries: Sequence[CatalogEntry]) -> dict[str, Any]:
    """The same as a structure for scripts."""
    models = [
        {
            "name": e.name,
            "task": e.task,
            "input": [list(shape) for shape in e.example.shapes],
            "conv2d": e.conv2d,
            "convertible": e.convertible,
            "gmac": e.gmac,
            "params_m": e.params_m,
        }
        for e in entries
    ]
    return {"schema": SCHEMA, "models": models}
