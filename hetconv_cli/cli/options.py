"""Arguments and options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How a report is written."""

    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"


class UnitChoice(StrEnum):
    """What is counted."""

    mac = "mac"
    flops = "flops"


class ArrangementChoice(StrEnum):
    """Which filter has its K x K kernels on which channels."""

    blocked = "blocked"
    shifted = "shifted"


class VariantChoice(StrEnum):
    """What stands in a convolution's place."""

    hetconv = "hetconv"
    dwc = "dwc"
    gwc = "gwc"


def complete_model(incomplete: str) -> list[str]:
    """The model names that begin so; a shell asks while a user types."""
    from hetconv_cli.models.catalog import known_models

    return [name for name in known_models() if name.startswith(incomplete)]


MODEL_HELP = (
    "A torchvision name or one of the paper's networks (hetconv list), timm/NAME, FILE.py:CALLABLE (runs that file),"
    " or a file that convert wrote."
)
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=complete_model, show_default=False)
]
Original = Annotated[
    str | None,
    typer.Option("--source", metavar="FILE.py:CALLABLE", help="The network of a file made from your own code."),
]
Weights = Annotated[
    str,
    typer.Option("--weights", metavar="none|DEFAULT|NAME|FILE", help="Trained weights for a network that MODEL names."),
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="1x3x224x224", help="Input size; 224 or 224x320 for height and width only."),
]
Se = Annotated[
    bool, typer.Option("--se", help="Squeeze-and-excitation (reduction 16) after each converted convolution.")
]
Pairs = Annotated[
    bool, typer.Option("--pairs", help="Take depthwise + pointwise pairs as one convolution each (MobileNet_P32).")
]
Reorder = Annotated[
    bool,
    typer.Option("--reorder", help="First put channels in an order in which the classes keep more; same function."),
]
Unit = Annotated[UnitChoice, typer.Option("--unit", help="flops: 2 x MACs.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How the report is written to stdout.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
Seed = Annotated[int, typer.Option("--seed", help="Of random weights.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
