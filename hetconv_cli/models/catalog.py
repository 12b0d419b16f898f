"""What is known of every model with a name without importing torch: the tables behind `hetconv list`.

The tables `torchvision.csv` and `paper.csv` are written by `tests/models/regenerate_catalog.py`, and tests hold them
against torchvision and the paper's networks.
"""

import csv
import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from hetconv_cli.models.example import ExampleSpec, parse_input

COLUMNS = ("name", "task", "kind", "input", "conv2d", "convertible", "gmac", "params_m")


@dataclass(frozen=True)
class CatalogEntry:
    """One model.

    Attributes:
        name: As in `torchvision.models.list_models()`, or of one of the paper's networks.
        task: classification, quantized, detection, segmentation, video or optical_flow.
        example: The input at which `gmac` was counted.
        conv2d: Number of `nn.Conv2d` modules, auxiliary heads included.
        convertible: How many of them are convertible in kind: exactly `nn.Conv2d`, groups 1, kernel odd in both
            dimensions and not 1 x 1. The image stem counts, though a conversion keeps it.
        gmac: 1e9 multiply-accumulates of one forward in eval mode, counted by torch's dispatcher. For detection
            models from one run on noise: theirs depends on the boxes that they find.
        params_m: 1e6 parameters, built without weights.
    """

    name: str
    task: str
    example: ExampleSpec
    conv2d: int
    convertible: int
    gmac: float
    params_m: float


@cache
def catalog() -> dict[str, CatalogEntry]:
    """All torchvision models by name, in alphabetical order."""
    return _read_table("torchvision.csv")


@cache
def paper_catalog() -> dict[str, CatalogEntry]:
    """The paper's networks that are built here, by name, in alphabetical order."""
    return _read_table("paper.csv")


def known_models() -> dict[str, CatalogEntry]:
    """All of torchvision's models, then the paper's networks."""
    return catalog() | paper_catalog()


def _read_table(file: str) -> dict[str, CatalogEntry]:
    text = files("hetconv_cli.models").joinpath(file).read_text(encoding="utf-8")
    entries = (_read_row(row) for row in csv.DictReader(text.splitlines()))
    return {entry.name: entry for entry in entries}


def _read_row(row: dict[str, str]) -> CatalogEntry:
    shapes = parse_input(row["input"]).shapes
    return CatalogEntry(
        name=row["name"],
        task=row["task"],
        example=ExampleSpec(shapes, kind="images" if row["kind"] == "images" else "tensors"),
        conv2d=int(row["conv2d"]),
        convertible=int(row["convertible"]),
        gmac=float(row["gmac"]),
        params_m=float(row["params_m"]),
    )


def match(pattern: str) -> list[CatalogEntry]:
    """The models whose name fits a shell pattern such as "resnet*": torchvision's, then the paper's."""
    return [entry for name, entry in known_models().items() if fnmatch.fnmatchcase(name, pattern.lower())]


def nearest(name: str, names: Iterable[str] | None = None, count: int = 3) -> list[str]:
    """Names that a mistyped `name` may have meant, best first; none if nothing is near.

    Args:
        name: What was typed.
        names: Where to look; torchvision's names and the paper's if None.
        count: At most so many.
    """
    known = list(known_models() if names is None else names)
    typed = name.lower()
    found = difflib.get_close_matches(typed, known, n=count, cutoff=0.6)
    if found or not typed:
        return found
    return [candidate for candidate in known if typed in candidate][:count]
