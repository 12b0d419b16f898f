"""What `bench` finds, as plain data."""

from dataclasses import dataclass
from typing import Literal

from hetconv_cli.bench.int8_graph import Int8Graph
from hetconv_cli.bench.subjects import Origin, Timed


@dataclass(frozen=True)
class Row:
    """One network (or layer) in one runtime at one batch size.

    Attributes:
        layer: The layer, or None for the whole network.
        variant: standard, hetconv, dwc, gwc; grouped (a HetConv as public code runs it); mixed (several of them).
        p: The part, or None: no HetConv, or several parts.
        parts: How many layers have each part.
        origin: Where its plan comes from: "file" (that convert wrote), "plan" (a plan.yaml) or None (the command line).
        groups: Of gwc.
        runtime: torch, compile, onnxruntime or openvino.
        dtype: float32 or int8.
        batch: Batch size.
        form: What was fastest, of the forms and memory layouts tried.
        median_ms: Of one call.
        iqr_ms: Interquartile range.
        images_per_s: batch / median.
        speedup: The standard network's median in the same runtime, batch and dtype, over this one's.
        promised: The standard network's MACs over this one's.
        share: speedup / promised.
        error: Largest difference from the reference relative to the output's scale, seen before it was timed.
        calibration: What int8 was calibrated on, "images" or "random"; None: not int8.
        int8: What of the quantized graph runs in int8; None: not int8.
    """

    layer: str | None
    variant: Timed
    p: int | Literal["pc"] | None
    parts: dict[int, int]
    origin: Origin | None
    groups: int | None
    runtime: str
    dtype: str
    batch: int
    form: str
    median_ms: float
    iqr_ms: float
    images_per_s: float
    speedup: float
    promised: float
    share: float
    error: float
    calibration: Literal["images", "random"] | None = None
    int8: Int8Graph | None = None


@dataclass(frozen=True)
class BenchReport:
    """All rows of one run on one machine.

    `input`: shapes of the network's inputs at batch 1. `images`: how many of them int8 was calibrated on; None: none.
    `weights`: where those of the standard network come from.
    """

    model: str
    input: tuple[tuple[int, ...], ...]
    device: str
    threads: int
    versions: dict[str, str]
    rows: tuple[Row, ...]
    images: int | None = None
    weights: str = "random"
