"""`hetconv flops`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import (
    Debug,
    Device,
    Force,
    Format,
    FormatOption,
    Input,
    Json,
    Model,
    Original,
    Pairs,
    Se,
    Unit,
    UnitChoice,
)
from hetconv_cli.cli.standard import standard_network

if TYPE_CHECKING:
    from hetconv_cli.measure.report import FlopsReport
    from hetconv_cli.models.device import DeviceName
    from hetconv_cli.models.source import Source

DEFAULT_PARTS = "2,4,8,16,32,64,pc"


def flops(
    model: Model,
    p: Annotated[
        str | None, typer.Option("--p", metavar="P,...", help=f"Parts [default: those of {DEFAULT_PARTS} that fit].")
    ] = None,
    compare: Annotated[
        str,
        typer.Option(
            "--compare", metavar="dwc,gwc[:G]", help="Other layers to count; gwc takes the first P given, or 4."
        ),
    ] = "",
    se: Se = False,
    pairs: Pairs = False,
    original: Original = None,
    input: Input = None,
    device: Device = "cpu",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="A row for each Conv2d of the standard network.")
    ] = False,
    unit: Unit = UnitChoice.mac,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the counts: .png, .svg, .pdf.")
    ] = None,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count a network and its variants: by equation, torch, thop, executed.

    Examples: hetconv flops vgg16 --compare dwc,gwc; hetconv flops net.py:build --input 1x3x64x64 --p 4,8 --json
    """
    from hetconv_cli.models.device import check_device
    from hetconv_cli.models.source import resolve
    from hetconv_cli.render.plot import check_plot_target, plot_flops

    place = check_device(device)
    source = resolve(model)
    if plot is not None:
        check_plot_target(plot, overwrite=force)
    report = _count(source, original, p, compare, se, input, pairs, place)
    if plot is not None:
        plot_flops(report, plot, unit.value)
        output.talk(f"wrote {plot}")
    _write(report, Format.json if json else format, unit, per_layer)


def _count(
    source: "Source",
    original: str | None,
    p: str | None,
    compare: str,
    se: bool,
    input: str | None,
    pairs: bool,
    device: "DeviceName",
) -> "FlopsReport":
    from hetconv_cli.measure.analyze import analyze_network, wishes_for
    from hetconv_cli.measure.network import open_source

    parts = (DEFAULT_PARTS if p is None else p).split(",")
    wishes = wishes_for(parts, [word for word in compare.split(",") if word], se, groups=4 if p is None else None)
    standard = standard_network(source, original, input)
    name = standard.source.label
    saved = standard.saved.plan if standard.saved else None
    with output.progress(name) as progress:
        progress("tracing", 0, len(wishes) + 1)
        network, example = open_source(standard.source, standard.input, device)
        return analyze_network(
            network, wishes, name, example, progress, skip_misfits=p is None, saved=saved, pairs=pairs
        )


def _write(report: "FlopsReport", format: Format, unit: UnitChoice, per_layer: bool) -> None:
    from hetconv_cli.render.flops import flops_csv, flops_json, flops_table, layers_csv, layers_table

    output.report(
        format,
        structure=lambda: flops_json(report, unit.value),
        lines=lambda: (layers_csv if per_layer else flops_csv)(report, unit.value),
        tables=lambda: [
            flops_table(report, unit.value),
            *([layers_table(report, unit.value)] if per_layer else []),
        ],
    )
