"""Calibration: layer by layer in the order the data flows, each on what the layers before it have become."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetconv_cli.conversion.calibration.agreement import agreement
from hetconv_cli.conversion.calibration.batchnorm import Statistics, correct, has_statistics
from hetconv_cli.conversion.calibration.report import CalibrationReport, LayerCalibration
from hetconv_cli.conversion.calibration.samples import HELD_OUT_EVERY, Samples
from hetconv_cli.conversion.calibration.solve import fit
from hetconv_cli.conversion.calibration.split import SplitMoments
from hetconv_cli.conversion.calibration.walk import (
    Lockstep,
    OutOfStepError,
    Partly,
    Rerun,
    chunks_within,
    held_bytes,
    tensor_in,
)
from hetconv_cli.conversion.trace import Recorder, forward_pass
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.plan import Plan

Walk = Rerun | Lockstep | Partly
Progress = Callable[[str, int, int], None]
MEMORY = 2 * 10**9  # bytes of activations that may be held for a single pass; images beyond are run anew for each layer


def no_progress(what: str, done: int, total: int) -> None:
    """Says nothing."""


def check_can_be_calibrated(plan: Plan) -> None:
    """Raises ArgumentError where the plan puts anything but plain HetConv layers in."""
    for layer in plan.converted:
        if layer.change and (layer.change.variant != "hetconv" or layer.change.se):
            raise ArgumentError(
                f"transfer 'calibrated' is for HetConv layers alone, but {layer.name or 'the model'} becomes"
                f" {layer.change}: use transfer 'center' and train"
            )
        if layer.absorbs:
            raise ArgumentError(
                f"transfer 'calibrated' takes one convolution at a time, but {layer.name} stands for a pair: leave out"
                " pairs, or use transfer 'center' and train"
            )


def calibrate(
    original: nn.Module,
    converted: nn.Module,
    plan: Plan,
    samples: Samples,
    *,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> CalibrationReport:
    """Gives every HetConv2d of `converted` the weights that bring its output nearest to the original layer's.

    Args:
        original: The network that was converted; it is left as it was.
        converted: What `apply_plan` made of it, with centre taps; it is changed in place.
        plan: How.
        samples: The images.
        seed: Which window positions are drawn where there are plenty.
        memory: Bytes of activations that may be held to need a single pass. Images that do not fit run anew for each
            layer; the numbers are the same.
        progress: Told what is being done, how many layers are done, and of how many.

    Raises:
        ArgumentError: a plan with other variants than HetConv.
        HetconvError: a network does not run on the images, or gives NaN or infinity.
    """
    check_can_be_calibrated(plan)
    start = time.perf_counter()
    with forward_pass(original), forward_pass(converted), torch.random.fork_rng(devices=[]):
        center = agreement(original, converted, samples.measured)
        work = _Work(original, converted, plan, samples, seed, memory, progress)
        try:
            work.run()
        finally:
            work.close()
        calibrated = agreement(original, converted, samples.measured)
    return CalibrationReport(
        images=samples.images,
        held_out=samples.held_out,
        layers=tuple(work.layers),
        batch_norms=work.batch_norms,
        center=center,
        calibrated=calibrated,
        rerun_images=work.rerun_images,
        held_bytes=work.held_bytes,
        seconds=time.perf_counter() - start,
        warnings=tuple(work.warnings(samples)),
    )


@dataclass(frozen=True)
class _Shortage:
    name: str
    positions: int
    unknowns: int

    def images_needed(self, fitted: int) -> int:
        per_image = max(self.positions / fitted, 1e-9)
        return math.ceil(math.ceil(self.unknowns / per_image) * HELD_OUT_EVERY / (HELD_OUT_EVERY - 1))


class _Work:
    """One calibration on its way."""

    def __init__(
        self,
        original: nn.Module,
        converted: nn.Module,
        plan: Plan,
        samples: Samples,
        seed: int,
        memory: int,
        progress: Progress,
    ) -> None:
        self._original, self._converted, self._samples = original, converted, samples
        self._seed, self._progress = seed, progress
        self.layers: list[LayerCalibration] = []
        self.batch_norms = 0
        self._shortages: list[_Shortage] = []
        self._names, self._calls = _order(original, converted, samples)
        self._never_called = [layer.name for layer in plan.converted if layer.name not in self._calls]
        self._substitutes = _Substitutes(original, converted, [layer.name for layer in plan.converted])
        self._rerun = Rerun(original, converted, samples.chunks, self._calls)
        self.held_bytes = self.rerun_images = 0
        self._walk = self._within(memory) if self._names else self._rerun

    def run(self) -> None:
        """All layers and BatchNorms, in order."""
        for done, name in enumerate(self._names):
            self._progress(f"calibrating {name}", done, len(self._names))
            module = self._converted.get_submodule(name)
            treat = self._treat_layer if isinstance(module, HetConv2d) else self._treat_norm
            try:
                treat(name, module, self._walk)
            except OutOfStepError:  # control flow that depends on values: every module by itself, from here on
                self._walk.close()
                self._walk, self.rerun_images = self._rerun, self._samples.images
                treat(name, module, self._walk)
        self._progress("calibrated", len(self._names), len(self._names))

    def close(self) -> None:
        """Lets go of everything."""
        self._walk.close()
        self._substitutes.remove_all()

    def warnings(self, samples: Samples) -> Iterator[str]:
        """What the user should know."""
        if self._never_called:
            shown = ", ".join(self._never_called[:3]) + (", ..." if len(self._never_called) > 3 else "")
            yield f"{len(self._never_called)} of the converted layers never ran and keep their centre taps ({shown})"
        if self._shortages:
            fitted = samples.images - samples.held_out
            needed = max(shortage.images_needed(fitted) for shortage in self._shortages)
            worst = max(self._shortages, key=lambda shortage: shortage.images_needed(fitted))
            yield (
                f"too few window positions for {len(self._shortages)} of {len(self.layers)} layers"
                f" ({worst.name or 'the model'}: {worst.positions} for {worst.unknowns} unknowns), held near the"
                f" sums of taps: about {needed} images would do"
            )

    def _treat_layer(self, name: str, module: nn.Module, walk: Walk) -> None:
        assert isinstance(module, HetConv2d)
        begun = time.perf_counter()
        calls = self._calls[name]
        sums = SplitMoments(module, self._samples, f"{self._seed}/{name}", calls)
        for pair in walk.pairs(name):
            _check_finite(name, pair.converted_input, pair.original_output)
            sums.add(pair.converted_input, pair.original_output, pair.chunk, pair.call)
        self._substitutes.remove(name)
        fitted = sums.fitted
        if not fitted.positions:
            return
        conv = self._original.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        found = fit(module, conv.weight, sums)
        if fitted.positions < fitted.unknowns:
            self._shortages.append(_Shortage(name, fitted.positions, fitted.unknowns))
        self.layers.append(
            LayerCalibration(
                name,
                module.p,
                fitted.unknowns,
                fitted.positions,
                found.error_before,
                found.error_after,
                time.perf_counter() - begun,
            )
        )

    def _treat_norm(self, name: str, module: nn.Module, walk: Walk) -> None:
        before, after = Statistics(), Statistics()
        for pair in walk.pairs(name):
            if not pair.chunk.held_out:
                before.add(pair.original_input)
                after.add(pair.converted_input)
        self.batch_norms += correct(module, before, after)

    def _within(self, memory: int) -> Walk:
        """As many chunks in lockstep as the memory holds, by what the first one holds."""
        chunks, models = self._samples.chunks, (self._original, self._converted)
        first = held_bytes(self._original, chunks[0].inputs, self._names)
        count, self.held_bytes = chunks_within(memory, chunks, first)
        rest = chunks[count:]
        self.rerun_images = sum(len(chunk.images) for chunk in rest)
        if not count:
            return self._rerun
        lockstep = Lockstep(*models, chunks[:count], self._names, self._calls)
        return Partly(lockstep, Rerun(*models, rest, self._calls)) if rest else lockstep


def _order(original: nn.Module, converted: nn.Module, samples: Samples) -> tuple[list[str], dict[str, int]]:
    """The HetConv2d and the BatchNorms behind them, in the order of their first calls; and how often each is called."""
    watched = [n for n, module in converted.named_modules() if isinstance(module, HetConv2d) or has_statistics(module)]
    with Recorder(converted, watched) as recorder:
        converted(*samples.chunks[0].inputs)
    calls: dict[str, int] = {}
    for call in recorder.calls:
        module = converted.get_submodule(call.module)
        is_layer = isinstance(module, HetConv2d)
        if is_layer or calls:  # a BatchNorm before all of them reads what it always read
            calls[call.module] = calls.get(call.module, 0) + 1
    return list(calls), calls


class _Substitutes:
    """Until a HetConv2d has its weights, the original convolution answers in its place."""

    def __init__(self, original: nn.Module, converted: nn.Module, names: list[str]) -> None:
        self._hooks = {}
        for name in names:
            conv, module = original.get_submodule(name), converted.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            self._hooks[name] = module.register_forward_hook(_answer(conv), with_kwargs=True)

    def remove(self, name: str) -> None:
        """From here on the layer answers itself."""
        self._hooks.pop(name).remove()

    def remove_all(self) -> None:
        """Every layer answers itself."""
        with contextlib.suppress(KeyError):
            while True:
                self._hooks.popitem()[1].remove()


def _answer(conv: nn.Conv2d) -> Callable[..., Tensor]:
    def answer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        wanted: Tensor = conv._conv_forward(tensor_in(args, kwargs), conv.weight, conv.bias)  # past its hooks
        return wanted

    return answer


def _check_finite(name: str, *tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise HetconvError(
            f"{name or 'the model'}: NaN or infinite numbers come out of the network on these images; are its weights"
            " and the images' scale right?"
        )
