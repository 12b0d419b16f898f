"""bench(): every contest in every runtime and batch size; no time is reported of what computes something else."""

import contextlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from hetconv_cli.bench.clock import Timing, time_alternately
from hetconv_cli.bench.quantize import quantize
from hetconv_cli.bench.report import BenchReport, Row
from hetconv_cli.bench.runtimes import (
    Device,
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
from hetconv_cli.models.example import ExampleSpec

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
    device: Device = "cpu"
    dtypes: Sequence[str] = ("float32",)
    threads: int = 1
    rounds: int = 5
    seconds: float = 0.5


def bench(name: str, contests: Sequence[Contest], settings: Settings, progress: Progress | None = None) -> BenchReport:
    """Times every contest.

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
    return BenchReport(name, device, settings.threads, _versions(), tuple(rows))


def _timed(contest: Contest, batch: int, runtime: Runtime, dtype: str, settings: Settings) -> list[Row]:
    example = contest.example.with_batch(batch)
    with _forms(contest, example, runtime, dtype, settings) as forms:
        errors = [
            _checked(subject, form, example, settings.device, dtype)
            for subject, form in zip(contest.subjects, forms, strict=True)
        ]
        timings = time_alternately(
            [form.open for form in forms],
            rounds=settings.rounds,
            seconds=settings.seconds,
            threads=settings.threads,
        )
    return [
        _row(contest, subject, form, timing, timings[0], error, (runtime, dtype, batch))
        for subject, form, timing, error in zip(contest.subjects, forms, timings, errors, strict=True)
    ]


@contextlib.contextmanager
def _forms(
    contest: Contest, example: ExampleSpec, runtime: Runtime, dtype: str, settings: Settings
) -> Iterator[list[Form]]:
    """Each subject in its faster form."""
    if runtime in ("torch", "compile"):
        yield [
            _faster(torch_forms(subject.model, example, settings.device, compiled=runtime == "compile"), settings)
            for subject in contest.subjects
        ]
        return
    opened = onnxruntime_form if runtime == "onnxruntime" else openvino_form
    with tempfile.TemporaryDirectory(prefix="hetconv-bench-") as folder:
        files = [Path(folder, f"{index}.onnx") for index in range(len(contest.subjects))]
        for file, subject in zip(files, contest.subjects, strict=True):
            write_onnx(subject.model, file, example)
            if dtype == "int8":
                quantize(file, example)
        yield [opened(file, example, settings.threads) for file in files]


def _faster(forms: list[Form], settings: Settings) -> Form:
    timings = time_alternately([form.open for form in forms], rounds=2, seconds=0.1, threads=settings.threads)
    return min(zip(timings, forms, strict=True), key=lambda pair: pair[0].median_ms)[1]


def _checked(subject: Subject, form: Form, example: ExampleSpec, device: Device, dtype: str) -> float:
    """Largest difference from the reference relative to the output's scale."""
    reference = subject.reference().to(device).eval()
    with torch.no_grad():
        wanted = tensors_in(reference(*example.make(device=device)))
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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
