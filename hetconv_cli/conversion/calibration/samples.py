"""Calibration images: whatever batches they came in, cut into chunks of our own, some held out to measure with."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.example import ExampleSpec

HELD_OUT_EVERY = 8  # of that many images the last one is held out
_CHUNK = 8  # images that go through a network together, more where there are very many
_MOST_CHUNKS = 16

Sample = tuple[Tensor, ...]  # one tensor for each input of the network, without batch dimension


@dataclass(frozen=True)
class Chunk:
    """Images that go through the networks together. `images` are their numbers in the order they were given."""

    images: tuple[int, ...]
    inputs: tuple[Any, ...]
    held_out: bool


@dataclass(frozen=True)
class Samples:
    """All calibration images. Nothing here depends on the batches in which they came."""

    chunks: tuple[Chunk, ...]
    images: int
    held_out: int

    @property
    def fitted(self) -> tuple[Chunk, ...]:
        """The chunks that weights are fitted on."""
        return tuple(chunk for chunk in self.chunks if not chunk.held_out)

    @property
    def measured(self) -> tuple[Chunk, ...]:
        """The chunks to measure on: those held out, or all where the images were too few to hold any out."""
        return tuple(chunk for chunk in self.chunks if chunk.held_out) or self.chunks


def read_samples(batches: Iterable[Any], model: nn.Module, example: ExampleSpec | None = None) -> Samples:
    """Reads all batches, checks every image, and moves them to the model's device and type.

    Args:
        batches: A tensor [n, ...], or an iterable of them; a tuple or list is taken for a batch with labels, of which
            the first elements are the model's inputs (one, or as many as the example has). For detection models a
            batch is a list of [3, H, W] images.
        model: What the images are for.
        example: What it is called with, where that is known.

    Raises:
        ArgumentError: no images, not tensors, another number of channels than the model takes, NaN or infinity.
    """
    as_list = example is not None and example.kind == "images"
    wanted = 1 if example is None else len(example.shapes)
    samples: list[Sample] = []
    for number, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
        samples += _as_images(batch, number) if as_list else _as_samples(batch, wanted, number)
    if not samples:
        raise ArgumentError("calibration: expected at least one batch of images, got none")
    for number, sample in enumerate(samples):
        _check(sample, number, example)
    like = next(model.parameters(), torch.empty(0))
    moved = [tuple(_to(tensor, like) for tensor in sample) for sample in samples]
    held = [number for number in range(len(moved)) if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    fitted = [number for number in range(len(moved)) if number % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    chunks = [*_cut(moved, fitted, as_list, held_out=False), *_cut(moved, held, as_list, held_out=True)]
    return Samples(tuple(chunks), len(moved), len(held))


def _as_samples(batch: Any, wanted: int, number: int) -> list[Sample]:
    tensors = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(tensors, tuple | list) or len(tensors) < wanted:
        raise _not_tensors(batch, number)
    inputs = tuple(tensors[:wanted])
    if not all(isinstance(tensor, Tensor) and tensor.dim() > 1 for tensor in inputs):
        raise _not_tensors(batch, number)
    if len({tensor.shape[0] for tensor in inputs}) != 1:
        sizes = ", ".join(str(tensor.shape[0]) for tensor in inputs)
        raise ArgumentError(f"calibration batch {number}: expected inputs of one batch size, got {sizes}")
    return [tuple(each) for each in zip(*inputs, strict=True)]


def _as_images(batch: Any, number: int) -> list[Sample]:
    if isinstance(batch, tuple):
        batch = batch[0]
    images: list[Any] = list(batch) if isinstance(batch, list | Tensor) else [None]
    if not all(isinstance(image, Tensor) and image.dim() == 3 for image in images):
        raise _not_tensors(batch, number)
    return [(image,) for image in images]


def _not_tensors(batch: Any, number: int) -> ArgumentError:
    return ArgumentError(
        f"calibration batch {number}: expected a tensor [images, ...] or a tuple that begins with the model's inputs,"
        f" got {type(batch).__name__}"
    )


def _check(sample: Sample, number: int, example: ExampleSpec | None) -> None:
    for position, tensor in enumerate(sample):
        if not tensor.isfinite().all():
            raise ArgumentError(f"calibration image {number} holds NaN or infinite numbers; leave it out")
        shape = None if example is None else example.shapes[position][1:]
        if shape is None:
            continue
        if len(shape) != tensor.dim() or (len(shape) >= 3 and shape[0] != tensor.shape[0]):
            expected, got = "x".join(map(str, shape)), "x".join(map(str, tensor.shape))
            what = "channels" if len(shape) == tensor.dim() else "dimensions"
            raise ArgumentError(
                f"calibration image {number}: expected the {what} of {expected} as the model takes, got {got}"
            )


def _to(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)


def _cut(samples: list[Sample], numbers: list[int], as_list: bool, *, held_out: bool) -> list[Chunk]:
    """Chunks of images of one size, in order."""
    most = max(_CHUNK, math.ceil(len(numbers) / _MOST_CHUNKS))
    groups: list[list[int]] = []
    for number in numbers:
        new = not groups or len(groups[-1]) == most
        if new or [t.shape for t in samples[groups[-1][0]]] != [t.shape for t in samples[number]]:
            groups.append([])
        groups[-1].append(number)
    return [Chunk(tuple(group), _inputs([samples[n] for n in group], as_list), held_out) for group in groups]


def _inputs(samples: list[Sample], as_list: bool) -> tuple[Any, ...]:
    if as_list:
        return ([image for (image,) in samples],)
    return tuple(torch.stack(tensors) for tensors in zip(*samples, strict=True))
