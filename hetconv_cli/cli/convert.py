"""`hetconv convert`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.calibration import (
    Calibrate,
    ImageOptions,
    Images,
    Mean,
    Memory,
    Size,
    Std,
    TransferChoice,
    TransferOption,
)
from hetconv_cli.cli.choice import Budget, LatencyBudget, Limit, MaxError, PlanFile
from hetconv_cli.cli.config import Config, rules_of
from hetconv_cli.cli.options import (
    ArrangementChoice,
    Debug,
    Device,
    Force,
    Format,
    FormatOption,
    Input,
    Json,
    Model,
    Pairs,
    Reorder,
    Se,
    Seed,
    VariantChoice,
    Weights,
)

if TYPE_CHECKING:
    from hetconv_cli.conversion.calibration.report import CalibrationReport
    from hetconv_cli.conversion.calibration.samples import Samples
    from hetconv_cli.conversion.reorder.report import ReorderReport
    from hetconv_cli.conversion.transfer import Transfer
    from hetconv_cli.measure.choice import Choice
    from hetconv_cli.measure.network import Network
    from hetconv_cli.models.built import BuiltModel
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
    weights: Weights = "none",
    config: Config = None,
    arrangement: Annotated[
        ArrangementChoice | None,
        typer.Option("--arrangement", help="[default: blocked; shifted after a concatenation]"),
    ] = None,
    variant: Annotated[VariantChoice, typer.Option("--variant", help="gwc takes P groups.")] = VariantChoice.hetconv,
    se: Se = False,
    pairs: Pairs = False,
    reorder: Reorder = False,
    transfer: TransferOption = None,
    calibrate: Calibrate = None,
    images: Images = 64,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    memory: Memory = None,
    budget: Budget = None,
    latency_budget: LatencyBudget = None,
    max_error: MaxError = None,
    plan_file: PlanFile = None,
    device: Device = "cpu",
    input: Input = None,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")] = False,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rewrite a network's convolutions into HetConv layers, in one file.

    Examples: hetconv convert resnet34 --p 4; hetconv convert net.py:build --p 8 --weights trained.pt;
    hetconv convert resnet34 --weights DEFAULT --budget 0.4 --calibrate photos
    """
    from hetconv_cli.conversion.convert import make_wish
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.files import check_target
    from hetconv_cli.models.device import check_device
    from hetconv_cli.models.source import resolve

    check_device(device)
    source = resolve(model)
    if source.kind == "checkpoint":
        raise ArgumentError(f"{model} is converted already: name the network that it came from")
    wish = make_wish(p, arrangement=arrangement.value if arrangement else None, variant=variant.value, se=se)
    limit = Limit.of(budget, latency_budget, max_error, plan_file, config)
    if limit and pairs:
        raise ArgumentError("--pairs and a budget do not go together: leave one of them out")
    rules = rules_of(config, wish)
    pictures = ImageOptions(calibrate, images, mean, std, size, seed, memory)
    pictures.files()  # what is wrong with them shall be said before anything is built
    _check_transfer(transfer, pictures)
    target = output_file or Path(f"{source.label}-{limit.suffix if limit else _suffix(p, variant)}.safetensors")
    if not dry_run:
        check_target(target, overwrite=force)
        if limit:
            check_target(limit.plan_file(target), overwrite=force)

    job = replace(_plan(source, input, rules, pairs), weights=_announced(source, weights), reorder=reorder)
    _check_reorder(job)
    if limit or (job.plan.converted and not dry_run):
        job = _build(job, weights, seed, pictures, device)
    if limit:
        job = _choose(job, limit, wish, seed)
    if not dry_run and job.plan.converted:
        job = _write(job, transfer, seed, pictures.memory_bytes, target, force)
        if limit and job.choice:
            limit.write_plan(job.choice, target, str(source))
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
    built: "BuiltModel | None" = None
    samples: "Samples | None" = None
    choice: "Choice | None" = None
    calibration: "CalibrationReport | None" = None
    reorder: bool = False
    reordering: "ReorderReport | None" = None


def _announced(source: "Source", weights: str) -> str:
    """Where the weights will come from, before anything is built."""
    if weights != "none":
        return weights
    return f"from {source}" if source.kind == "file" else "random"


def _check_transfer(transfer: TransferChoice | None, pictures: ImageOptions) -> None:
    from hetconv_cli.errors import ArgumentError

    if transfer is TransferChoice.calibrated and pictures.folder is None:
        raise ArgumentError("--transfer calibrated needs images: --calibrate FOLDER")
    if transfer not in (None, TransferChoice.calibrated) and pictures.folder is not None:
        raise ArgumentError(f"--calibrate is for --transfer calibrated, not {transfer}: leave one of them out")


def _check_reorder(job: _Job) -> None:
    """Before anything is built: whether there are weights, and classes for them."""
    from hetconv_cli.conversion.reorder.reorder import check_can_be_reordered
    from hetconv_cli.errors import ArgumentError

    if job.reorder and job.weights == "random":
        raise ArgumentError("--reorder needs trained weights: --weights DEFAULT, a name of theirs, or a file")
    if job.reorder and job.plan.converted:
        check_can_be_reordered(job.plan)


def _suffix(p: str, variant: VariantChoice) -> str:
    return {"hetconv": f"p{p.lower()}", "gwc": f"gwc{p}", "dwc": "dwc"}[variant.value]


def _plan(source: "Source", input: str | None, rules: "Rules", pairs: bool) -> _Job:
    from hetconv_cli.measure.network import open_source
    from hetconv_cli.plan import make_plan

    with output.progress(source.label) as progress:
        progress("tracing", 0, 1)
        network, example = open_source(source, input)
        candidates = network.candidates(pairs)
    return _Job(source, network, example, make_plan(candidates, rules))


def _build(job: _Job, weights: str, seed: int, pictures: ImageOptions, device: str) -> _Job:
    """The network with its weights, and the images to fit them to, on the device that does the work."""
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.models.build import build

    with output.progress(job.source.label) as progress:
        progress("building", 0, 1)
        built = build(job.source, weights=weights, seed=seed)
        built.model.to(device)
        samples = None
        if pictures.folder is not None:
            if built.weights == "random":
                raise ArgumentError("--calibrate needs trained weights: --weights DEFAULT, a name of theirs, or a file")
            samples = pictures.read(job.source, weights, built.model, job.example, progress)
    return replace(job, built=built, samples=samples, weights=built.weights)


def _choose(job: _Job, limit: Limit, wish: "Wish", seed: int) -> _Job:
    """The plan with the parts that make the least error."""
    from hetconv_cli.measure.choice import choose

    assert job.built is not None
    with output.progress(job.source.label) as progress:
        choice = choose(
            job.built.model, job.network.trace, limit.kind_and_value, wish, job.samples, seed=seed, progress=progress
        )
    return replace(job, plan=choice.plan, choice=choice)


def _write(job: _Job, transfer: TransferChoice | None, seed: int, memory: int, target: Path, force: bool) -> _Job:
    """Reorders the network's channels, rewrites it, calibrates it, writes it, and reads it back."""
    from hetconv_cli.conversion.calibration.calibrate import calibrate
    from hetconv_cli.conversion.checkpoint import save
    from hetconv_cli.conversion.convert import Conversion, check_calls
    from hetconv_cli.conversion.reorder.reorder import reorder_for
    from hetconv_cli.conversion.rewrite import apply_plan

    assert job.built is not None
    original, report, reordering = job.built.model, None, None
    inputs = job.example.make(device=next((tensor.device for tensor in original.parameters()), "cpu"))
    with output.progress(job.source.label) as progress:
        if job.reorder:
            reordered = reorder_for(original, job.plan, inputs, seed=seed, progress=progress)
            original, reordering = reordered.model, reordered.report
        progress("rewriting", 0, 2)
        new_model = apply_plan(original, job.plan, _transfer(transfer, job))
        check_calls(job.network.trace, job.plan, new_model, inputs)
        if job.samples is not None:
            report = calibrate(original, new_model, job.plan, job.samples, seed=seed, memory=memory, progress=progress)
        progress("writing and reading back", 1, 2)
        weights = f"{job.weights}, calibrated on {report.images} images" if report else job.weights
        conversion = Conversion(new_model.cpu(), job.plan, job.example, weights, report, reordering)
        save(conversion, target, source=str(job.source), overwrite=force, original=original.cpu())
    return replace(job, weights=weights, written=target, calibration=report, reordering=reordering)


def _transfer(transfer: TransferChoice | None, job: _Job) -> "Transfer":
    """Random weights are taken as fresh ones unless something else was asked for."""
    if transfer is None and job.weights == "random":
        return "fresh"
    return "sum" if transfer is TransferChoice.sums_of_taps else "center"


def _report(job: _Job, format: Format) -> None:
    from hetconv_cli.measure.summary import summarize
    from hetconv_cli.render.calibration import calibration_json, calibration_table
    from hetconv_cli.render.choice import choice_json, choice_table
    from hetconv_cli.render.convert import convert_csv, convert_json, convert_table, nothing_converted
    from hetconv_cli.render.reorder import reorder_json, reorder_table
    from hetconv_cli.render.table import to_markdown

    summary = summarize(job.network, job.plan)
    name, written = str(job.source), str(job.written) if job.written else None
    if format is Format.json:
        structure = convert_json(name, job.plan, summary, written, job.weights)
        structure["choice"] = choice_json(job.choice) if job.choice else None
        structure["calibration"] = calibration_json(job.calibration) if job.calibration else None
        structure["reorder"] = reorder_json(job.reordering) if job.reordering else None
        output.json_data(structure)
    elif format is Format.csv:
        output.data(convert_csv(job.plan))
    elif not job.plan.converted:
        output.data(nothing_converted(name, job.plan))
    else:
        table = convert_table(name, job.plan, summary, job.example.describe(), job.weights)
        chosen = [choice_table(job.choice)] if job.choice else []
        reordered = [reorder_table(job.reordering)] if job.reordering else []
        calibrated = [calibration_table(job.calibration)] if job.calibration else []
        for each in (table, *chosen, *reordered, *calibrated):
            if format is Format.markdown:
                output.data(to_markdown(each))
            else:
                output.table(each)
    if job.written:
        _say_what_next(job, job.written)


def _say_what_next(job: _Job, written: Path) -> None:
    from hetconv_cli.render.numbers import size

    output.talk(f"\nwrote {written} ({size(written.stat().st_size)}, reloaded, outputs equal bit for bit)")
    own_code = f" --source {job.source}" if job.source.kind == "file" else ""
    output.talk(f"MACs are not time: hetconv bench {written}{own_code}")
    if job.weights == "random" and job.source.kind == "paper":
        output.talk("These weights are random: train them.")
    elif job.weights == "random":
        source = f"hetconv convert {job.source} --weights DEFAULT"
        output.talk(f"These weights are random: train them, or start from a trained network: {source}")
    elif job.calibration is None:
        output.talk(
            f"Weights carried over ({job.weights}): K x K kernels in a filter's class, centre taps elsewhere."
            " If they were trained, accuracy is lost: train on, or fit them to a few images: --calibrate FOLDER."
        )
