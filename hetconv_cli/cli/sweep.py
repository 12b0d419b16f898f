"""`hetconv sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import Debug, Force, Format, FormatOption, Input, Json, Model, Unit, UnitChoice
from hetconv_cli.cli.standard import standard_network

if TYPE_CHECKING:
    from hetconv_cli.measure.sweep import Sweep


def sweep(
    model: Model,
    p: Annotated[
        str | None, typer.Option("--p", metavar="P,...", help="Parts [default: powers of two that fit, and pc].")
    ] = None,
    input: Input = None,
    unit: Unit = UnitChoice.mac,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curves: .png, .svg, .pdf.")
    ] = None,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """MACs and parameters over P: HetConv, DWC+PWC, GWC+PWC, and where they cross.

    Examples: hetconv sweep vgg16_cifar; hetconv sweep resnet34 --p 2,4,8,16 --plot sweep.png
    """
    from hetconv_cli.models.source import resolve
    from hetconv_cli.plan_file import parse_part
    from hetconv_cli.render.plot import check_plot_target
    from hetconv_cli.render.plot_paper import plot_sweep

    source = resolve(model)
    parts = None if p is None else list(dict.fromkeys(parse_part(word) for word in p.split(",")))
    if plot is not None:
        check_plot_target(plot, overwrite=force)
    standard = standard_network(source, None, input)
    from hetconv_cli.measure.network import open_source
    from hetconv_cli.measure.sweep import sweep as sweep_network

    name = standard.source.label
    with output.progress(name) as progress:
        progress("tracing", 0, 1)
        network, example = open_source(standard.source, standard.input)
        result = sweep_network(network, name, example.shapes, parts)
    if plot is not None:
        plot_sweep(result, plot, unit.value)
        output.talk(f"wrote {plot}")
    _write(result, Format.json if json else format, unit)


def _write(result: "Sweep", format: Format, unit: UnitChoice) -> None:
    from hetconv_cli.render.sweep import sweep_csv, sweep_json, sweep_table

    output.report(
        format,
        structure=lambda: sweep_json(result, unit.value),
        lines=lambda: sweep_csv(result, unit.value),
        tables=lambda: [sweep_table(result, unit.value)],
    )
