"""The standard network behind a MODEL argument: the one it names, or the one that a converted file was made from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetconv_cli.conversion.checkpoint import Recipe
    from hetconv_cli.models.source import Source


@dataclass(frozen=True)
class Standard:
    """What is built and run. `saved` is what MODEL says of itself, if convert wrote it; else None."""

    source: "Source"
    input: str | None
    saved: "Recipe | None"


def standard_network(source: "Source", original: str | None, input: str | None) -> Standard:
    """The network of `source`, on `input` or else on what a converted file was made for.

    Raises:
        ArgumentError: not a file that convert wrote; its network is a user's own code, which `original` shall name.
    """
    if source.kind != "checkpoint":
        return Standard(source, input, None)
    from hetconv_cli.conversion.checkpoint import original_of

    source, saved = original_of(source, original)
    if input is None and saved.example is not None:
        input = saved.example.describe()
    return Standard(source, input, saved)
