"""`hetconv bench`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli import output
from hetconv_cli.cli.calibration import ImageOptions, Images, Mean, Std
from hetconv_cli.cli.config import Config, rules_of
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
    Seed,
    Weights,
)
from hetconv_cli.cli.standard import standard_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hetconv_cli.bench.report import BenchReport
    from hetconv_cli.bench.run import Settings
    from hetconv_cli.bench.subjects import Entrant
    from hetconv_cli.conversion.transfer import Transfer
    from hetconv_cli.measure.network import Network
    from hetconv_cli.models.example import ExampleSpec
    from hetconv_cli.models.source import Source
    from hetconv_cli.plan import Wish

DEFAULT_PART = "4"


def bench(
    model: Model,
    p: Annotated[
        str | None,
        typer.Option("--p", metavar="P,...", help="Parts. [default: 4; with a converted file or --config none more]"),
    ] = None,
    compare: Annotated[
        str,
        typer.Option(
            "--compare",
            metavar="dwc,gwc[:G],grouped",
            help="Others to time; grouped: HetConv as public code runs it, grouped K x K + full 1 x 1.",
        ),
    ] = "",
    config: Config = None,
    original: Original = None,
    weights: Weights = "none",
    batch: Annotated[str, typer.Option("--batch", metavar="N,...", help="Batch sizes.")] = "1,8",
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="NAME,...", help="torch, compile, onnxruntime, openvino.")
    ] = "torch",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, int8, or both: float32,int8.")] = "float32",
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="FOLDER", help="Images (or .npy, .pt) to calibrate int8 on, not noise."),
    ] = None,
    images: Images = 64,
    mean: Mean = None,
    std: Std = None,
    device: Device = "cpu",
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

    Examples: hetconv bench resnet34 --p 4 --runtime torch,onnxruntime --batch 8; hetconv bench resnet34-p4.safetensors
    """
    from hetconv_cli.models.source import resolve
    from hetconv_cli.render.bench import bench_csv, bench_json, bench_tables, plot_bench
    from hetconv_cli.render.plot import check_plot_target

    if plot is not None:
        check_plot_target(plot, overwrite=force)
    settings = _settings(batch, runtime, dtype, device, threads, rounds, seconds)
    pictures = ImageOptions(calibrate, images, mean, std, None, seed)
    _check_pictures(pictures, settings)
    asked = _Asked(resolve(model), original, weights, p, compare, config, input, seed)
    report = _run(asked, pictures, settings, layers)
    if plot is not None:
        plot_bench(report, plot)
        output.talk(f"wrote {plot}")
    output.report(
        Format.json if json else format,
        structure=lambda: bench_json(report),
        lines=lambda: bench_csv(report),
        tables=lambda: bench_tables(report),
    )


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the network and its rivals."""

    source: "Source"
    original: str | None
    weights: str
    p: str | None
    compare: str
    config: Path | None
    input: str | None
    seed: int

    def wishes(self) -> "tuple[list[Wish], Wish]":
        """What is asked for by --p and --compare; and what --config may leave open."""
        from hetconv_cli.conversion.convert import make_wish
        from hetconv_cli.errors import ArgumentError
        from hetconv_cli.measure.analyze import wishes_for

        words = [word for word in self.compare.split(",") if word]
        for word in words:
            if not re.fullmatch(r"dwc|gwc(:.*)?|grouped", word):
                raise ArgumentError(f"--compare: expected dwc, gwc, gwc:GROUPS or grouped; got {word!r}")
        named = self.p.split(",") if self.p is not None else []
        default = [] if self.source.kind == "checkpoint" or self.config is not None else [DEFAULT_PART]
        wishes = wishes_for(named or default, [word for word in words if word != "grouped"])
        return wishes, make_wish((named or [DEFAULT_PART])[0])

    @property
    def peer(self) -> bool:
        """Whether HetConv is to be timed as public code runs it, too."""
        return "grouped" in self.compare.split(",")


@dataclass(frozen=True)
class _Opened:
    """The standard network, traced and with weights, and what it is timed against.

    `name`, and `weights`, which says where the weights come from, are for the report.
    """

    name: str
    weights: str
    source: "Source"
    network: "Network"
    model: "nn.Module"
    example: "ExampleSpec"
    entrants: "list[Entrant]"


def _open(asked: _Asked) -> _Opened:
    from hetconv_cli.bench.subjects import Entrant, entrant, with_peers
    from hetconv_cli.conversion.checkpoint import load
    from hetconv_cli.measure.network import open_source
    from hetconv_cli.models.build import build

    wishes, base = asked.wishes()
    rules = rules_of(asked.config, base)  # what is wrong with the file shall be said before anything is built
    standard = standard_network(asked.source, asked.original, asked.input)
    source, saved = standard.source, standard.saved
    network, example = open_source(source, standard.input)
    built = build(source, weights=asked.weights, seed=asked.seed)
    model = built.model
    entrants: list[Entrant] = []
    if saved is not None:
        conversion = load(asked.source.name, model)
        entrants.append(Entrant(conversion.plan, origin="file", model=conversion.model))
    if asked.config is not None:
        entrants.append(entrant(network, rules, "plan"))
    entrants += [entrant(network, wish) for wish in wishes]
    name = f"{source.label} ({Path(asked.source.name).name})" if saved is not None else source.label
    rivals = with_peers(entrants) if asked.peer else entrants
    return _Opened(name, built.weights, source, network, model, example, rivals)


def _run(asked: _Asked, pictures: ImageOptions, settings: "Settings", layers: bool) -> "BenchReport":
    from hetconv_cli.bench.run import bench as run
    from hetconv_cli.bench.subjects import layer_contests, network_contest

    label = asked.source.label
    with output.progress(label) as progress:
        progress("building", 0, 1)
        opened = _open(asked)
        images = None
        if pictures.folder is not None:
            images = _images(pictures, opened, asked.weights, progress)
        # What a user's file returns may well be untrained: only weights that were asked for are carried over.
        transfer: Transfer = "fresh" if _no(asked.weights) else "center"
        whole = network_contest(opened.model, opened.network, opened.entrants, opened.example, transfer)
        contests = [replace(whole, images=images)]
        if layers:
            contests += layer_contests(opened.model, opened.network, opened.entrants, transfer)
        return run(opened.name, contests, settings, progress, weights=opened.weights)


def _no(weights: str) -> bool:
    return weights.lower() == "none"


def _check_pictures(pictures: ImageOptions, settings: "Settings") -> None:
    from hetconv_cli.errors import ArgumentError

    pictures.files()
    if pictures.folder is not None and "int8" not in settings.dtypes:
        raise ArgumentError("--calibrate is for int8: give --dtype int8 (or float32,int8) with it")


def _images(pictures: ImageOptions, opened: _Opened, weights: str, progress: output.Progress) -> "Tensor":
    """The images [n, C, H, W], of the network's own input size; for random weights, made as for trained ones."""
    import torch

    from hetconv_cli.errors import ArgumentError

    if opened.example.kind == "images":
        raise ArgumentError("--calibrate: int8 is calibrated on tensors [n, C, H, W]; this model takes lists of images")
    authors = "DEFAULT" if _no(weights) else weights
    samples = pictures.read(opened.source, authors, opened.model, opened.example, progress)
    wanted = opened.example.shapes[0][1:]
    for chunk in samples.chunks:
        got = tuple(chunk.inputs[0].shape[1:])
        if got != wanted:
            sizes = ["x".join(map(str, shape)) for shape in (wanted, got)]
            raise ArgumentError(
                f"--calibrate: expected images of {sizes[0]}, got {sizes[1]}: cut them, or give --input"
            )
    return torch.cat([chunk.inputs[0] for chunk in samples.chunks])


def _settings(
    batch: str, runtime: str, dtype: str, device: str, threads: int | None, rounds: int, seconds: float
) -> "Settings":
    from hetconv_cli.bench.run import Settings
    from hetconv_cli.bench.runtimes import RUNTIMES, check_runtime
    from hetconv_cli.errors import ArgumentError
    from hetconv_cli.models.device import check_device

    known = {
        "--runtime": (runtime, RUNTIMES),
        "--dtype": (dtype, ("float32", "int8")),
    }
    for option, (words, allowed) in known.items():
        for word in words.split(","):
            if word not in allowed:
                raise ArgumentError(f"{option}: expected {', '.join(allowed)}; got {word!r}")
    for option, number in {"--rounds": rounds, "--seconds": seconds, "--threads": threads}.items():
        if number is not None and not 0 < number < float("inf"):
            raise ArgumentError(f"{option}: expected a positive number, got {number}")
    settings = Settings(
        runtimes=tuple(dict.fromkeys(runtime.split(","))),  # type: ignore[arg-type]  # checked above
        batches=_batches(batch),
        device=check_device(device),
        dtypes=tuple(dict.fromkeys(dtype.split(","))),
        threads=_threads(threads),
        rounds=rounds,
        seconds=seconds,
    )
    for one in settings.runtimes:  # before anything is built
        check_runtime(one, settings.device)
    return settings


def _batches(text: str) -> list[int]:
    from hetconv_cli.errors import ArgumentError

    for word in text.split(","):
        if not re.fullmatch(r"[1-9][0-9]{0,5}", word.strip(), re.ASCII):
            raise ArgumentError(f"--batch: expected positive whole numbers such as 1,8; got {word!r}")
    return list(dict.fromkeys(int(word) for word in text.split(",")))


def _threads(number: int | None) -> int:
    import torch

    if number is not None:
        torch.set_num_threads(number)
    return torch.get_num_threads()
