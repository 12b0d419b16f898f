"""What `bench` finds, as plain data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One network (or layer) in one runtime at one batch size.

    Attributes:
        layer: The layer, or None for the whole network.
        variant: standard, hetconv, dwc or gwc.
        p: The part, or None.
        groups: Of gwc.
        runtime: torch, compile, onnxruntime or openvino.
        dtype: float32 or int8.
        batch: Batch size.
        form: The memory layout that was faster, of those tried.
        median_ms: Of one call.
        iqr_ms: Interquartile range.
        images_per_s: batch / median.
        speedup: The standard network's median in the same runtime, batch and dtype, over this one's.
        promised: The standard network's MACs over this one's.
        share: speedup / promised.
        error: Largest difference from the reference relative to the output's scale, seen before it was timed.
    """

    layer: str | None
    variant: Literal["standard", "hetconv", "dwc", "gwc"]
    p: int | Literal["pc"] | None
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


@dataclass(frozen=True)
class BenchReport:
    """All rows of one run on one machine."""

    model: str
    device: str
    threads: int
    versions: dict[str, str]
    rows: tuple[Row, ...]
