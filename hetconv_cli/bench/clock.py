"""Times calls in alternating blocks: a block of A, a block of B, again, so that a busy machine slows both alike."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch.utils.benchmark import Timer

Call = Callable[[], object]
Opened = Callable[[], AbstractContextManager[Call]]  # makes a runner ready; only one is open at a time


@dataclass(frozen=True)
class Timing:
    """Of one call: median and interquartile range over all blocks, in milliseconds."""

    median_ms: float
    iqr_ms: float


def time_alternately(runners: Sequence[Opened], *, rounds: int, seconds: float, threads: int) -> list[Timing]:
    """Each runner's timing. Every round opens them in turn, warms up, and times a block of about `seconds`.

    Runners are opened one at a time: two ONNX Runtime sessions alive at once spin against each other.
    """
    times: list[list[float]] = [[] for _ in runners]
    for _ in range(rounds):
        for own, runner in zip(times, runners, strict=True):
            with runner() as call:
                call()  # first calls allocate and choose algorithms
                timer = Timer("call()", globals={"call": call}, num_threads=threads)
                own.extend(timer.blocked_autorange(min_run_time=seconds).times)
    return [_timing(own) for own in times]


def _timing(seconds: list[float]) -> Timing:
    if len(seconds) < 2:
        return Timing(1e3 * seconds[0], 0.0)
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Timing(1e3 * middle, 1e3 * (high - low))
