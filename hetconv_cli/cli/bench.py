"""`hetconv bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.options import Debug, Force, Format, FormatOption, Input, Json, Model, Seed

if TYPE_CHECKING:
    from hetconv_cli.bench.report import BenchReport
    from hetconv_cli.bench.run import Settings


def bench(
    model: Model,
    p: Annotated[str, typer.Option("--p", metavar="P,...", help="Parts.")] = "4",
    compare: Annotated[str, typer.Option("--compare", metavar="dwc,gwc[:G]", help="Other layers to time.")] = "",
    batch: Annotated[str, typer.Option("--batch", metavar="N,...", help="Batch sizes.")] = "1,8",
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="NAME,...", help="torch, compile, onnxruntime, openvino.")
    ] = "torch",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, int8, or both.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", help="On the CPU [default: torch's].")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Each different layer alone, too.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", help="Alternating blocks of each network.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", help="Of each block.")] = 0.5,
    input: Input = None,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Promised against reached.")] = None,
    force: Force = False,
    format: FormatOption = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a network and its variants, and say how much of the promise is kept.

    Example: hetconv bench resnet34 --p 4 --runtime torch,onnxruntime --batch 8
    """
    from hetconv_cli.files import check_target
    from hetconv_cli.render.bench import bench_csv, bench_json, bench_table, plot_bench
    from hetconv_cli.render.plot import check_plot_target

    if plot is not None:
        check_plot_target(plot)
        check_target(plot, overwrite=force)
    settings = _settings(batch, runtime, dtype, device, threads, rounds, seconds)
    report = _run(model, p, compare, layers, input, seed, settings)
    if plot is not None:
        plot_bench(report, plot)
        output.talk(f"wrote {plot}")
    output.report(
        Format.json if json else format,
        structure=lambda: bench_json(report),
        lines=lambda: bench_csv(report),
        tables=lambda: [bench_table(report)],
    )


def _run(
    model: str, p: str, compare: str, layers: bool, input: str | None, seed: int, settings: "Settings"
) -> "BenchReport":
    from hetconv_cli.bench.run import bench as run
    from hetconv_cli.bench.subjects import layer_contests, network_contest
    from hetconv_cli.measure.analyze import wishes_for
    from hetconv_cli.measure.network import open_source
    from hetconv_cli.models.build import build
    from hetconv_cli.models.source import resolve

    source = resolve(model)
    wishes = wishes_for(p.split(","), [word for word in compare.split(",") if word])
    with output.progress(source.label) as progress:
        progress("building", 0, 1)
        network, example = open_source(source, input)
        built = build(source, seed=seed).model
        contests = [network_contest(built, network, wishes, example)]
        if layers:
            contests += layer_contests(built, network, wishes)
        return run(source.label, contests, settings, progress)


def _settings(
    batch: str, runtime: str, dtype: str, device: str, threads: int | None, rounds: int, seconds: float
) -> "Settings":
    import torch

    from hetconv_cli.bench.run import Settings
    from hetconv_cli.bench.runtimes import RUNTIMES
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.plan_file import parse_part

    batches = [parse_part(word) for word in batch.split(",")]
    known = {
        "--runtime": (runtime, RUNTIMES),
        "--dtype": (dtype, ("float32", "int8")),
        "--device": (device, ("cpu", "cuda")),
    }
    for option, (words, allowed) in known.items():
        for word in words.split(","):
            if word not in allowed:
                raise ArgumentError(f"{option}: expected {', '.join(allowed)}; got {word!r}")
    if "pc" in batches or rounds < 1 or not seconds > 0 or (threads is not None and threads < 1):
        raise ArgumentError("--batch, --rounds, --seconds and --threads must be positive numbers")
    if threads is not None:
        torch.set_num_threads(threads)
    return Settings(
        runtimes=runtime.split(","),  # type: ignore[arg-type]  # checked above, like the next two
        batches=batches,  # type: ignore[arg-type]
        device=device,  # type: ignore[arg-type]
        dtypes=dtype.split(","),
        threads=torch.get_num_threads(),
        rounds=rounds,
        seconds=seconds,
    )
