"""`hetconv convert`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import (
    ArrangementChoice,
    Debug,
    Force,
    Format,
    FormatOption,
    Input,
    Json,
    Model,
    Pairs,
    Se,
    Seed,
    VariantChoice,
)

if TYPE_CHECKING:
    from hetconv_cli.measure.network import Network
    from hetconv_cli.models.example import ExampleSpec
    from hetconv_cli.models.source import Source
    from hetconv_cli.plan import Plan, Rules, Wish


def convert(
    model: Model,
    p: Annotated[
        str, typer.Option("--p", metavar="P", help="The part: K x K kernels on 1/P of the channels; or pc for P = M.")
    ] = "4",
    output_file: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="[default: MODEL-pP.safetensors]")
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="none|DEFAULT|NAME|FILE", help="Trained weights to start from.")
    ] = "none",
    config: Annotated[
        Path | None, typer.Option("--config", metavar="plan.yaml", help="Rules for single layers; they go first.")
    ] = None,
    arrangement: Annotated[
        ArrangementChoice | None,
        typer.Option("--arrangement", help="[default: blocked; shifted after a concatenation]"),
    ] = None,
    variant: Annotated[VariantChoice, typer.Option("--variant", help="gwc takes P groups.")] = VariantChoice.hetconv,
    se: Se = False,
    pairs: Pairs = False,
    input: Input = None,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")] = False,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rewrite a network's convolutions into HetConv layers, in one file.

    Examples: hetconv convert resnet34 --p 4; hetconv convert net.py:build --p 8 --weights trained.pt
    """
    from hetconv_cli.convert.conversion import make_wish
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.files import check_target
    from hetconv_cli.models.source import resolve

    source = resolve(model)
    if source.kind == "checkpoint":
        raise ArgumentError(f"{model} is converted already: name the network that it came from")
    wish = make_wish(p, arrangement=arrangement.value if arrangement else None, variant=variant.value, se=se)
    rules = _rules(config, wish)
    target = output_file or Path(f"{source.label}-{_suffix(p, variant)}.safetensors")
    if not dry_run:
        check_target(target, overwrite=force)

    job = _plan(source, input, rules, pairs)
    if not dry_run and job.plan.converted:
        job = _write(job, weights, seed, target, force)
    _report(job, Format.json if json else format)


@dataclass(frozen=True)
class _Job:
    """One conversion on its way: planned, then perhaps written."""

    source: "Source"
    network: "Network"
    example: "ExampleSpec"
    plan: "Plan"
    weights: str = "random"
    written: Path | None = None


def _suffix(p: str, variant: VariantChoice) -> str:
    return {"hetconv": f"p{p.lower()}", "gwc": f"gwc{p}", "dwc": "dwc"}[variant.value]


def _rules(config: Path | None, wish: "Wish") -> "Rules":
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


def _plan(source: "Source", input: str | None, rules: "Rules", pairs: bool) -> _Job:
    from hetconv_cli.convert.candidates import find_candidates
    from hetconv_cli.convert.pairs import with_pairs
    from hetconv_cli.measure.network import open_source
    from hetconv_cli.plan import make_plan

    with output.progress(source.label) as progress:
        progress("tracing", 0, 1)
        network, example = open_source(source, input)
        candidates = find_candidates(network.model, network.trace)
        if pairs:
            candidates = with_pairs(candidates, network.model, network.inputs)
    return _Job(source, network, example, make_plan(candidates, rules))


def _write(job: _Job, weights: str, seed: int, target: Path, force: bool) -> _Job:
    """Builds the network with its weights, rewrites it, writes it, and reads it back."""
    from hetconv_cli.convert.checkpoint import save
    from hetconv_cli.convert.conversion import Conversion, check_calls
    from hetconv_cli.convert.rewrite import apply_plan
    from hetconv_cli.models.build import build

    with output.progress(job.source.label) as progress:
        progress("building", 0, 3)
        built = build(job.source, weights=weights, seed=seed)
        progress("rewriting", 1, 3)
        new_model = apply_plan(built.model, job.plan, "fresh" if built.weights == "random" else "center")
        progress("writing and reading back", 2, 3)
        check_calls(job.network.trace, job.plan, new_model, job.example.make())
        conversion = Conversion(new_model, job.plan, job.example, built.weights)
        save(conversion, target, source=str(job.source), overwrite=force, original=built.model)
    return replace(job, weights=built.weights, written=target)


def _report(job: _Job, format: Format) -> None:
    from hetconv_cli.measure.summary import summarize
    from hetconv_cli.render.convert import convert_csv, convert_json, convert_table, nothing_converted
    from hetconv_cli.render.table import to_markdown

    summary = summarize(job.network, job.plan)
    name, written = str(job.source), str(job.written) if job.written else None
    if format is Format.json:
        output.json_data(convert_json(name, job.plan, summary, written, job.weights))
    elif format is Format.csv:
        output.data(convert_csv(job.plan))
    elif not job.plan.converted:
        output.data(nothing_converted(name, job.plan))
    else:
        table = convert_table(name, job.plan, summary, job.example.describe(), job.weights)
        if format is Format.markdown:
            output.data(to_markdown(table))
        else:
            output.table(table)
    if job.written:
        _say_what_next(job, job.written)


def _say_what_next(job: _Job, written: Path) -> None:
    from hetconv_cli.render.numbers import size

    output.talk(f"\nwrote {written} ({size(written.stat().st_size)}, reloaded, outputs equal bit for bit)")
    if job.weights == "random" and job.source.kind == "paper":
        output.talk("These weights are random: train them.")
    elif job.weights == "random":
        source = f"hetconv convert {job.source} --weights DEFAULT"
        output.talk(f"These weights are random: train them, or start from a trained network: {source}")
    else:
        output.talk(
            f"Weights carried over ({job.weights}): K x K kernels in a filter's class, centre taps elsewhere."
            " If they were trained, accuracy is lost: train on."
        )
