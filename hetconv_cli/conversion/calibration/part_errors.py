"""What each part would cost each layer in error, measured on images or read from the weights alone."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetconv_cli.conversion.calibration.samples import Chunk, Samples
from hetconv_cli.conversion.calibration.solve import fit
from hetconv_cli.conversion.calibration.split import SplitMoments
from hetconv_cli.conversion.calibration.walk import tensor_in
from hetconv_cli.conversion.rewrite import build_layer
from hetconv_cli.conversion.trace import forward_pass
from hetconv_cli.conversion.transfer import transfer_weights
from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.plan import Change, LayerPlan

Progress = Callable[[str, int, int], None]
MEMORY = 10**9  # bytes of sums held at once; more layers and parts than fit are measured in further passes

Errors = dict[str, dict[int, float]]  # layer -> part -> squared error over the squared spread of the layer's output


def divisors(channels: int) -> list[int]:
    """The parts that a layer of so many input channels can have, without 1."""
    return [p for p in range(2, channels + 1) if channels % p == 0]


@torch.no_grad()
def spectral_errors(model: nn.Module, layers: tuple[LayerPlan, ...]) -> Errors:
    """The energy of the taps that go, over that of all: the error of the centre taps on white inputs of mean zero."""
    errors: Errors = {}
    for layer in layers:
        conv = _conv(model, layer)
        total = float((conv.weight.double() ** 2).sum())
        errors[layer.name] = {}
        for p in divisors(layer.geometry.in_channels):
            new = build_layer(conv, _change(layer, p))
            assert isinstance(new, HetConv2d)
            transfer_weights(new, conv, "center")
            gone = float(((conv.weight.double() - new.dense_weight().double()) ** 2).sum())
            errors[layer.name][p] = gone / total if total else 0.0
    return errors


def measured_errors(
    model: nn.Module,
    layers: tuple[LayerPlan, ...],
    samples: Samples,
    *,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress = lambda what, done, total: None,
) -> Errors:
    """The error of each layer with each part, weights fitted to the images, inputs as in the original network.

    Measured on what is held out, images or blocks of their maps. Every other layer is the original one, so the errors
    do not add up exactly; they are what a choice can be made from.
    """
    errors: Errors = {layer.name: {} for layer in layers}
    jobs = list(_jobs(model, layers, samples, seed))
    done = 0
    with forward_pass(model):
        while done < len(jobs):
            some = _that_fit(jobs[done:], memory)
            for job in some:
                job.open()
            progress("measuring each layer with each part", done, len(jobs))
            _watch(model, some, samples)
            for job in some:
                errors[job.layer.name][job.p] = job.close()
            done += len(some)
    progress("measuring each layer with each part", done, len(jobs))
    return errors


@dataclass
class _Job:
    """One layer with one part."""

    layer: LayerPlan
    conv: nn.Conv2d
    p: int
    samples: Samples
    key: str
    sums: SplitMoments | None = None

    @property
    def bytes(self) -> int:
        """Memory of the sums, on the images fitted and on those held out."""
        g = self.layer.geometry
        m, n, ring = g.in_channels, g.out_channels, g.taps - 1
        return 16 * (m * m * (1 + ring) + m * m * ring * ring // self.p + m * n * (1 + ring))

    def open(self) -> None:
        layer = self._layer("meta")
        layer = layer.to_empty(device=self.conv.weight.device)
        self.sums = SplitMoments(layer, self.samples, self.key)

    def close(self) -> float:
        """The squared error over the spread; the sums are let go."""
        assert self.sums is not None
        if not self.sums.fitted.positions:
            return 0.0
        layer = build_layer(self.conv, _change(self.layer, self.p))
        assert isinstance(layer, HetConv2d)
        transfer_weights(layer, self.conv, "center")
        found = fit(layer, self.conv.weight, self.sums)
        self.sums = None
        if not math.isfinite(found.error_after):
            raise HetconvError(f"{self.layer.name}: its output does not vary on these images, so no error can be told")
        return found.error_after**2

    def _layer(self, device: str) -> HetConv2d:
        on_meta = copy.deepcopy(self.conv).to(device)
        layer = build_layer(on_meta, _change(self.layer, self.p))
        assert isinstance(layer, HetConv2d)
        return layer


def _jobs(model: nn.Module, layers: tuple[LayerPlan, ...], samples: Samples, seed: int) -> Iterator[_Job]:
    for layer in layers:
        for p in divisors(layer.geometry.in_channels):
            yield _Job(layer, _conv(model, layer), p, samples, f"{seed}/{layer.name}")


def _that_fit(jobs: list[_Job], memory: int) -> list[_Job]:
    """As many as the memory holds, one at least."""
    total = 0
    some: list[_Job] = []
    for job in jobs:
        total += job.bytes
        if some and total > memory:
            break
        some.append(job)
    return some


def _watch(model: nn.Module, jobs: list[_Job], samples: Samples) -> None:
    """One pass over all images, during which the jobs' layers fill their sums."""
    by_conv: dict[nn.Conv2d, list[_Job]] = {}
    for job in jobs:
        by_conv.setdefault(job.conv, []).append(job)
    for chunk in samples.chunks:
        hooks = [conv.register_forward_hook(_adding(mine, chunk), with_kwargs=True) for conv, mine in by_conv.items()]
        try:
            model(*chunk.inputs)
        finally:
            for hook in hooks:
                hook.remove()


def _adding(jobs: list[_Job], chunk: Chunk) -> Callable[..., None]:
    """A hook of one convolution that adds each of its calls to the jobs' sums."""
    calls = itertools.count()

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        call = next(calls)
        for job in jobs:
            assert job.sums is not None
            job.sums.add(tensor_in(args, kwargs), output, chunk, call)

    return add


def _conv(model: nn.Module, layer: LayerPlan) -> nn.Conv2d:
    conv = model.get_submodule(layer.name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _change(layer: LayerPlan, p: int) -> Change:
    assert layer.change is not None
    return Change("hetconv", p=p, arrangement=layer.change.arrangement)
