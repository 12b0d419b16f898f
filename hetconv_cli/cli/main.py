"""The entry point: the app, and how errors become one line on stderr and an exit status."""

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from hetconv_cli.cli.bench import bench
from hetconv_cli.cli.convert import convert
from hetconv_cli.cli.export import export
from hetconv_cli.cli.flops import flops
from hetconv_cli.cli.list_models import list_models
from hetconv_cli.cli.reproduce import reproduce
from hetconv_cli.cli.sweep import sweep
from hetconv_cli.errors import HetconvError

INTERRUPTED = 130

# Typer brings its own click, older ones import it; the class is the same in name.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="hetconv",
    help="HetConv (CVPR 2019) for any convolutional network.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"hetconv {version('hetconv-cli')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(convert)
app.command()(flops)
app.command()(export)
app.command()(bench)
app.command("list")(list_models)
app.command()(reproduce)
app.command()(sweep)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong argument, 3 not proven, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(arguments, prog_name="hetconv", standalone_mode=False) or 0
        if status == INTERRUPTED:  # Typer has caught the interruption, and says nothing
            raise KeyboardInterrupt
    except HetconvError as error:
        status = _failed(str(error), error, error.exit_status, arguments)
    except _UsageError as error:
        status = _failed(_one_sentence(error), error, 2, arguments)
    except (KeyboardInterrupt, typer.Abort) as error:
        status = _failed("interrupted; nothing was written", error, INTERRUPTED, arguments)
    except MemoryError as error:
        status = _failed("out of memory: choose a smaller --input", error, 1, arguments)
    sys.exit(status)


def _failed(message: str, error: BaseException, status: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
        return status
    line = " ".join(message.split())
    red, off = ("\033[31m", "\033[0m") if _colored() else ("", "")
    print(f"{red}hetconv: {line}{off}", file=sys.stderr)
    return status


def _colored() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _one_sentence(error: Exception) -> str:
    message = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path} --help" if context else message
