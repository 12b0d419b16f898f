"""The example input of a model, as plain data: shapes now, tensors only when asked for."""

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hetconv_cli.errors import ArgumentError

if TYPE_CHECKING:
    import torch

_SHAPE = re.compile(r"[1-9][0-9]{0,9}(x[1-9][0-9]{0,9})*")
_MOST_ELEMENTS = 2**31  # of one input; beyond this a float32 tensor passes 8 GiB


@dataclass(frozen=True)
class ExampleSpec:
    """What a model is called with.

    Attributes:
        shapes: One shape per positional input, batch dimension first, (1, 3, 800, 800) for detection models too.
        kind: "tensors": `model(x, ...)`, each a tensor of its shape. "images": `model([image, ...])`, one list of
            [3, H, W] images, as torchvision's detection models take.
        assumed: True where nobody declared the shape (a user's file that returns no example). `parse_input`
            then takes any full shape in its place.
    """

    shapes: tuple[tuple[int, ...], ...]
    kind: Literal["tensors", "images"] = "tensors"
    assumed: bool = False

    def with_batch(self, n: int) -> "ExampleSpec":
        """The same inputs with batch size `n`."""
        return replace(self, shapes=tuple((n, *shape[1:]) for shape in self.shapes))

    def make(
        self, *, device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None, seed: int = 0
    ) -> tuple[Any, ...]:
        """Random inputs, to be passed as `model(*example.make())`.

        Tensors are standard normal, images uniform in [0, 1]. The same seed gives the same numbers on every
        device (drawn in float32 on the CPU, then moved); the global random state is neither read nor changed.
        On the meta device nothing is allocated.

        Args:
            device: Where the tensors shall be.
            dtype: Their type; torch's default type if None.
            seed: Of the generator that draws them.
        """
        import torch

        dtype = dtype or torch.get_default_dtype()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        draw = torch.rand if self.kind == "images" else torch.randn

        def tensor(shape: tuple[int, ...]) -> torch.Tensor:
            if torch.device(device).type == "meta":
                return torch.empty(shape, device="meta", dtype=dtype)
            return draw(shape, generator=generator, device="cpu", dtype=torch.float32).to(device, dtype)

        tensors = tuple(tensor(shape) for shape in self.shapes)
        if self.kind == "images":
            return ([image for batch in tensors for image in batch.unbind(0)],)
        return tensors

    def describe(self) -> str:
        """The shapes as `parse_input` reads them: "1x3x224x224", "1x3x520x960, 1x3x520x960"."""
        return ", ".join("x".join(str(size) for size in shape) for shape in self.shapes)


def parse_input(text: str, like: ExampleSpec | None = None) -> ExampleSpec:
    """Read an input size as a user types it.

    >>> parse_input("1x3x192x192").shapes
    ((1, 3, 192, 192),)
    >>> parse_input("224x320", like=parse_input("1x3x64x64")).describe()
    '1x3x224x320'

    Args:
        text: Full shapes, batch first, separated by commas; or, with `like`, only the height and width ("224" or
            "224x320").
        like: The model's own example. Number of inputs, number of dimensions and channels must agree with it
            (unless it is only assumed). Where it has several inputs of one shape, one shape stands for all.

    Raises:
        ArgumentError: If the text is none of these.
    """
    shapes = tuple(_parse_shape(part.strip(), text, like) for part in text.split(","))
    if like is None:
        like = ExampleSpec(shapes, assumed=True)
    shapes = _spread(shapes, like)
    _check_dimensions(shapes, like, text)
    for shape in shapes:
        if math.prod(shape) > _MOST_ELEMENTS:
            raise ArgumentError(f"input {text!r}: expected at most 2**31 elements, got {math.prod(shape):,}")
    return ExampleSpec(shapes, like.kind)


def _parse_shape(part: str, text: str, like: ExampleSpec | None) -> tuple[int, ...]:
    if not _SHAPE.fullmatch(part):
        got = "" if part == text else f", got {part!r}"
        raise ArgumentError(f"input {text!r}: expected positive whole sizes such as {_wanted(like)}{got}")
    return tuple(int(size) for size in part.split("x"))


def _spread(shapes: tuple[tuple[int, ...], ...], like: ExampleSpec) -> tuple[tuple[int, ...], ...]:
    """Complete what was typed by what `like` has: other dimensions, other inputs of the same shape."""
    if len(shapes) != 1:
        return shapes
    (typed,) = shapes
    if len(typed) <= 2 and all(len(shape) >= 4 for shape in like.shapes):
        height, width = typed[0], typed[-1]
        return tuple((*shape[:-2], height, width) for shape in like.shapes)
    if len(set(like.shapes)) == 1:
        return (typed,) * len(like.shapes)
    return shapes


def _check_dimensions(shapes: tuple[tuple[int, ...], ...], like: ExampleSpec, text: str) -> None:
    start = f"input {text!r}: expected"
    if like.assumed:
        if any(len(shape) < 2 for shape in shapes):
            raise ArgumentError(f"{start} the batch size and at least one more, such as {_wanted(like)}")
        return
    if len(shapes) != len(like.shapes):
        raise ArgumentError(f"{start} {len(like.shapes)} shape(s) such as {_wanted(like)}, got {len(shapes)}")
    for shape, own in zip(shapes, like.shapes, strict=True):
        if len(shape) != len(own):
            raise ArgumentError(f"{start} {len(own)} sizes such as {_wanted(like)}, got {len(shape)}")
        if len(own) >= 4 and shape[1] != own[1]:
            raise ArgumentError(f"{start} {own[1]} channels as in {_wanted(like)}, got {shape[1]}")


def _wanted(like: ExampleSpec | None) -> str:
    if like is None or like.assumed:
        return "1x3x224x224"
    return f"{like.describe()} (or 224, or 224x320, for height and width)"


def inputs_of(example: Any) -> tuple[Any, ...]:
    """The positional arguments that an example stands for: an ExampleSpec, a tuple of tensors, or the only input."""
    if isinstance(example, ExampleSpec):
        return example.make()
    return example if isinstance(example, tuple) else (example,)


def spec_of(example: Any) -> ExampleSpec:
    """The shapes of an example that a user gave.

    Args:
        example: A tensor, a tuple of tensors (one per positional input), a list of [C, H, W] images of one size, or
            a tuple that holds only such a list.

    Raises:
        ArgumentError: If it is anything else.
    """
    import torch

    if isinstance(example, tuple) and len(example) == 1 and isinstance(example[0], list):
        (example,) = example
    if isinstance(example, list):
        return _spec_of_images(example)
    inputs = example if isinstance(example, tuple) else (example,)
    for value in inputs:
        if not isinstance(value, torch.Tensor):
            got = type(value).__name__
            raise ArgumentError(f"example: expected a tensor, a tuple of tensors or a list of images, got {got}")
        if value.dim() == 0:
            raise ArgumentError("example: expected a batch dimension first, got a tensor without dimensions")
    if not inputs:
        raise ArgumentError("example: expected at least one tensor, got an empty tuple")
    return ExampleSpec(tuple(tuple(value.shape) for value in inputs))


def _spec_of_images(images: list[Any]) -> ExampleSpec:
    import torch

    shapes = {tuple(image.shape) if isinstance(image, torch.Tensor) else None for image in images}
    if len(shapes) != 1:
        raise ArgumentError(f"example: expected a list of images of one size, got {len(shapes)} sizes")
    (shape,) = shapes
    if shape is None or len(shape) != 3:
        got = "no tensors" if shape is None else f"{len(shape)} dimensions"
        raise ArgumentError(f"example: expected a list of [3, H, W] images, got {got}")
    return ExampleSpec(((len(images), *shape),), kind="images")
