"""`hetconv export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import (
    MODEL_HELP,
    Debug,
    Device,
    Force,
    Format,
    FormatOption,
    Input,
    Json,
    Original,
    Seed,
    Weights,
    complete_model,
)

if TYPE_CHECKING:
    from torch import nn

    from hetconv_cli.models.example import ExampleSpec
    from hetconv_cli.models.source import Source


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help=f"{MODEL_HELP} [default: the file convert wrote last here]",
            autocompletion=complete_model,
        ),
    ] = None,
    p: Annotated[
        str | None,
        typer.Option("--p", metavar="P", help="Convert MODEL first; else it is exported as it is."),
    ] = None,
    weights: Weights = "none",
    original: Original = None,
    input: Input = None,
    opset: Annotated[int | None, typer.Option("--opset", help="[default: 18]")] = None,
    static_batch: Annotated[bool, typer.Option("--static-batch", help="Fix the batch size at the input's.")] = False,
    atol: Annotated[float, typer.Option("--atol", help="Absolute tolerance of the proof.")] = 0.0,
    rtol: Annotated[float, typer.Option("--rtol", help="Tolerance relative to the output's scale.")] = 1e-4,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write the file without a proof.")] = False,
    device: Device = "cpu",
    seed: Seed = 0,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write ONNX and prove that it computes the same.

    Examples: hetconv export model.onnx; hetconv export small.onnx resnet34 --p 4 --weights trained.pt
    """
    from hetconv_cli.files import check_target
    from hetconv_cli.models.device import check_device

    check_device(device)
    check_target(out, overwrite=force)
    choice = _choose(model)
    with output.progress(out.name) as progress:
        progress("loading", 0, 2)
        subject = _load(choice, p, weights, original, input, seed)

        from hetconv_cli.export.onnx_file import export_onnx

        report = export_onnx(
            subject.model,
            out,
            subject.example,
            opset=opset,
            dynamic_batch=not static_batch,
            atol=atol,
            rtol=rtol,
            verify=not no_verify,
            fresh=subject.random,
            device=device,
            overwrite=force,
            progress=lambda step: progress(step, 1, 2),
        )

    from hetconv_cli.render.export import export_csv, export_json, export_text

    if json or format is Format.json:
        output.json_data(export_json(report, choice.name))
    elif format is Format.csv:
        output.data(export_csv(report, choice.name))
    else:
        found = " (newest here; name another with MODEL)" if choice.found else ""
        output.data(export_text(report, choice.name + found))


@dataclass(frozen=True)
class _Choice:
    """What is exported, and whether it was found rather than named."""

    source: "Source"
    found: bool

    @property
    def name(self) -> str:
        return str(self.source)


@dataclass(frozen=True)
class _Subject:
    """A network with its weights, ready to be exported."""

    model: "nn.Module"
    example: "ExampleSpec"
    random: bool


def _choose(model: str | None) -> _Choice:
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.models.source import resolve

    if model is not None:
        return _Choice(resolve(model), found=False)

    from hetconv_cli.conversion.checkpoint import newest_checkpoint

    newest = newest_checkpoint(Path())
    if newest is None:
        raise ArgumentError(
            "no file that convert wrote in this folder: make one with `hetconv convert resnet34 --p 4`, or name a MODEL"
        )
    return _Choice(resolve(str(newest)), found=True)


def _load(choice: _Choice, p: str | None, weights: str, original: str | None, input: str | None, seed: int) -> _Subject:
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.models.build import build
    from hetconv_cli.models.example import parse_input
    from hetconv_cli.models.source import resolve

    if choice.source.kind == "checkpoint":
        from hetconv_cli.conversion.checkpoint import load

        if p is not None or weights != "none":
            raise ArgumentError(f"{choice.name} is converted and has its weights: --p and --weights do not apply to it")
        conversion = load(choice.source.name, build(resolve(original)).model if original else None)
        random = conversion.weights == "random" or original is not None
        example, model = conversion.example, conversion.model
    else:
        built = build(choice.source, weights=weights, seed=seed)
        # what a user's file returns may well be untrained
        random = built.weights == "random" or choice.source.kind == "file"
        example, model = built.example, built.model
        if p is not None:
            from hetconv_cli.conversion.convert import convert
            from hetconv_cli.plan_file import parse_part

            model = convert(model, parse_part(p), example=example, transfer="fresh" if random else "center").model
    if input is not None:
        example = parse_input(input, like=example)
    if example is None:
        raise ArgumentError(f"{choice.name} does not say what its input is: pass --input, such as --input 1x3x224x224")
    return _Subject(model, example, random)
