"""bench(): every contest in every runtime and batch size; no time is reported of what computes something else."""

import contextlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree

from hetconv_cli.bench.clock import Timing, time_alternately
from hetconv_cli.bench.int8_graph import Int8Graph, inspect_onnxruntime, inspect_openvino
from hetconv_cli.bench.quantize import Batch, image_batches, quantize, random_batches
from hetconv_cli.bench.report import BenchReport, Row
from hetconv_cli.bench.runtimes import (
    Form,
    Runtime,
    check_runtime,
    onnxruntime_form,
    openvino_form,
    tensors_in,
    torch_forms,
    write_onnx,
)
from hetconv_cli.bench.subjects import Contest, Subject
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models.device import DeviceName
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.versions import installed

LARGEST_ERROR = {"float32": 1e-3, "int8": 0.5}  # relative to the output's scale; int8 rounds, and is told apart
_PACKAGES = ("torch", "onnxruntime", "openvino", "hetconv-cli")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How to time.

    Attributes:
        runtimes: In which runtimes.
        batches: At which batch sizes.
        device: "cpu" or "cuda".
        dtypes: float32, int8 (onnxruntime and openvino only).
        threads: On the CPU.
        rounds: How often each subject gets its turn.
        seconds: Of each turn.
    """

    runtimes: Sequence[Runtime] = ("torch",)
    batches: Sequence[int] = (1, 8)
    device: DeviceName = "cpu"
    dtypes: Sequence[str] = ("float32",)
    threads: int = 1
    rounds: int = 5
    seconds: float = 0.5


def bench(
    name: str,
    contests: Sequence[Contest],
    settings: Settings,
    progress: Progress | None = None,
    *,
    weights: str = "random",
) -> BenchReport:
    """Times every contest. `weights` says, for the report, where those of the standard network come from.

    Raises:
        ArgumentError: a runtime that is not here; int8 in a runtime that has none here.
        HetconvError: a form computes something else than the reference; its time is not reported.
    """
    for runtime in settings.runtimes:
        check_runtime(runtime, settings.device)
    tell = progress or (lambda what, done, total: None)
    jobs = [
        (contest, batch, runtime, dtype)
        for contest in contests
        for batch in settings.batches
        for runtime in settings.runtimes
        for dtype in settings.dtypes
        if dtype == "float32" or runtime in ("onnxruntime", "openvino")
    ]
    if not jobs:
        raise ArgumentError("--dtype int8 is measured in onnxruntime and openvino: --runtime onnxruntime,openvino")
    rows: list[Row] = []
    for done, (contest, batch, runtime, dtype) in enumerate(jobs):
        tell(f"{contest.layer or 'network'}, batch {batch}, {runtime} {dtype}", done, len(jobs))
        rows += _timed(contest, batch, runtime, dtype, settings)
    device = torch.cuda.get_device_name() if settings.device == "cuda" else _processor()
    images = next((len(contest.images) for contest in contests if contest.images is not None), None)
    shapes = contests[0].example.with_batch(1).shapes
    versions = {"python": platform.python_version(), **installed(_PACKAGES)}
    return BenchReport(name, shapes, device, settings.threads, versions, tuple(rows), images, weights)


def _timed(contest: Contest, batch: int, runtime: Runtime, dtype: str, settings: Settings) -> list[Row]:
    example = contest.example.with_batch(batch)
    inputs = _inputs(contest, example, dtype)
    with _forms(contest, example, runtime, dtype, settings) as forms:
        errors = [
            _checked(subject, form, inputs, settings.device, dtype)
            for subject, form in zip(contest.subjects, forms, strict=True)
        ]
        graphs = [_graph(form, runtime, dtype) for form in forms]
        timings = time_alternately(
            [form.open for form in forms],
            rounds=settings.rounds,
            seconds=settings.seconds,
            threads=settings.threads,
        )
    rows = [
        _row(contest, subject, form, timing, timings[0], error, (runtime, dtype, batch))
        for subject, form, timing, error in zip(contest.subjects, forms, timings, errors, strict=True)
    ]
    if dtype != "int8":
        return rows
    calibration: Literal["images", "random"] = "random" if contest.images is None else "images"
    return [replace(row, calibration=calibration, int8=graph) for row, graph in zip(rows, graphs, strict=True)]


def _graph(form: Form, runtime: Runtime, dtype: str) -> Int8Graph | None:
    """What of a quantized file runs in int8."""
    if dtype != "int8" or form.file is None:
        return None
    return inspect_onnxruntime(form.file) if runtime == "onnxruntime" else inspect_openvino(form.file)


@contextlib.contextmanager
def _forms(
    contest: Contest, example: ExampleSpec, runtime: Runtime, dtype: str, settings: Settings
) -> Iterator[list[Form]]:
    """Each subject in its fastest form; the peer as it is, in the faster memory layout."""
    if runtime in ("torch", "compile"):
        compiled = runtime == "compile"
        yield [
            _faster(torch_forms(subject.model, example, settings.device, compiled=compiled, plain=plain), settings)
            for subject in contest.subjects
            for plain in [subject.variant == "grouped"]
        ]
        return
    opened = onnxruntime_form if runtime == "onnxruntime" else openvino_form
    with tempfile.TemporaryDirectory(prefix="hetconv-bench-") as folder:
        files = [Path(folder, f"{index}.onnx") for index in range(len(contest.subjects))]
        for file, subject in zip(files, contest.subjects, strict=True):
            write_onnx(subject.model, file, example, plain=subject.variant == "grouped")
            if dtype == "int8":
                quantize(file, _calibration(contest, example))
        inputs = tensors_in(_inputs(contest, example, dtype))
        yield [opened(file, inputs, settings.threads) for file in files]


def _calibration(contest: Contest, example: ExampleSpec) -> Iterator[Batch]:
    if contest.images is None:
        return random_batches(example)
    return image_batches(contest.images, example.shapes[0][0])


def _inputs(contest: Contest, example: ExampleSpec, dtype: str) -> tuple[Any, ...]:
    """What is timed and checked with: int8 with inputs like those it was calibrated on, or it would clip them."""
    if dtype == "int8" and contest.images is not None:
        return next(image_batches(contest.images, example.shapes[0][0]))
    return example.make()


def _faster(forms: list[Form], settings: Settings) -> Form:
    timings = time_alternately([form.open for form in forms], rounds=4, seconds=0.2, threads=settings.threads)
    return min(zip(timings, forms, strict=True), key=lambda pair: pair[0].median_ms)[1]


def _checked(subject: Subject, form: Form, inputs: tuple[Any, ...], device: DeviceName, dtype: str) -> float:
    """Largest difference from the reference relative to the output's scale."""
    reference = subject.reference().to(device).eval()
    with torch.no_grad():
        wanted = tensors_in(reference(*_pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)))
    error = max(_difference(got, want) for got, want in zip(form.outputs(), wanted, strict=True))
    if not error <= LARGEST_ERROR[dtype]:
        raise HetconvError(
            f"{subject.variant} (P={subject.p}) in form {form.name} differs from the reference by {error:.1e} of its"
            f" scale, more than {LARGEST_ERROR[dtype]:g}: no time is given for a wrong result"
        )
    return error


def _difference(got: Tensor, want: Tensor) -> float:
    scale = want.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((got.to(want.device) - want).abs().max() / scale)


def _row(
    contest: Contest,
    subject: Subject,
    form: Form,
    timing: Timing,
    standard: Timing,
    error: float,
    key: tuple[str, str, int],
) -> Row:
    runtime, dtype, batch = key
    speedup, promised = standard.median_ms / timing.median_ms, contest.promised(subject)
    return Row(
        layer=contest.layer,
        variant=subject.variant,
        p=subject.p,
        parts=subject.parts,
        origin=subject.origin,
        groups=subject.groups,
        runtime=runtime,
        dtype=dtype,
        batch=batch,
        form=form.name,
        median_ms=timing.median_ms,
        iqr_ms=timing.iqr_ms,
        images_per_s=1e3 * batch / timing.median_ms,
        speedup=speedup,
        promised=promised,
        share=speedup / promised,
        error=error,
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
