"""What a model is called with, as often and at whatever batch size the export needs it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.example import ExampleSpec, spec_of


@dataclass(frozen=True)
class Inputs:
    """Random inputs like an example.

    Attributes:
        spec: Their shapes, the batch dimension first, and whether they are tensors or a list of images.
        values: The tensors that the caller gave; None if the caller gave shapes.
        dtype: Of inputs that are made from shapes.
    """

    spec: ExampleSpec
    values: tuple[Tensor, ...] | None
    dtype: torch.dtype

    @property
    def is_images(self) -> bool:
        """Whether the model takes one list of [C, H, W] images."""
        return self.spec.kind == "images"

    @property
    def batch(self) -> int:
        """The example's own batch size (number of images)."""
        return self.spec.shapes[0][0]

    @property
    def names(self) -> list[str]:
        """The inputs' names in the file: "input", or "input_0", "input_1" ..."""
        count = self.batch if self.is_images else len(self.spec.shapes)
        return ["input"] if count == 1 else [f"input_{index}" for index in range(count)]

    def make(self, batch: int, seed: int) -> tuple[Any, ...]:
        """Positional arguments for the model, on the CPU: `batch` samples (images: as many as the example has).

        From shapes: as `ExampleSpec.make`. From given tensors: each number is drawn from that tensor's own ones, so
        that types and ranges stay; floating-point tensors that hold one number only become standard normal.
        """
        if self.values is None:
            spec = self.spec if self.is_images else self.spec.with_batch(batch)
            return spec.make(dtype=self.dtype, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        if self.is_images:
            return ([_draw(value, value.shape, generator) for value in self.values],)
        return tuple(_draw(value, (batch, *value.shape[1:]), generator) for value in self.values)


def inputs_like(example: Any, model: nn.Module) -> Inputs:
    """Reads an example: an ExampleSpec, a tensor, a tuple of tensors, or a list of images.

    Raises:
        ArgumentError: it is anything else, or empty.
    """
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    dtype = dtype or torch.get_default_dtype()
    if isinstance(example, ExampleSpec):
        return Inputs(example, None, dtype)
    spec = spec_of(example)
    if isinstance(example, tuple) and isinstance(example[0], list):
        (example,) = example
    values = tuple(example) if isinstance(example, tuple | list) else (example,)
    if any(value.numel() == 0 for value in values):
        raise ArgumentError(f"example: expected at least one element in each input, got {spec.describe()}")
    return Inputs(spec, tuple(value.detach().cpu() for value in values), dtype)


def flatten_arguments(arguments: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of positional arguments in the order of `Inputs.names`."""
    return [tensor for argument in arguments for tensor in (argument if isinstance(argument, list) else [argument])]


def _draw(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    flat = like.flatten()
    if like.is_floating_point() and bool((flat == flat[0]).all()):
        return torch.randn(shape, generator=generator).to(like.dtype)
    count = torch.Size(shape).numel()
    return flat[torch.randint(len(flat), (count,), generator=generator)].view(shape)
