"""`--config`: rules for single layers on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hetconv_cli.plan import Rules, Wish

Config = Annotated[
    Path | None, typer.Option("--config", metavar="plan.yaml", help="Rules for single layers; they go first.")
]


def rules_of(config: Path | None, wish: "Wish") -> "Rules":
    """The rules of the file, which leaves the rest to `wish`; without a file the wish alone.

    Raises:
        ArgumentError: the file cannot be read, or is no plan.
    """
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.plan import Rules
    from hetconv_cli.plan_file import rules_from_yaml

    if config is None:
        return Rules(wish)
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ArgumentError(f"{config}: cannot be read as a plan: {reason}") from None
    return rules_from_yaml(text, str(config), wish)
