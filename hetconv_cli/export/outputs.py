"""What a model returns, as named tensors in the order in which the exporters write them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from hetconv_cli.errors import ArgumentError

Path = tuple[str | int, ...]


def named_outputs(output: Any, taken: list[str]) -> dict[str, Tensor]:
    """The tensors in `output`, a tensor or dicts, lists and tuples of tensors; None stands for an absent one.

    Names: "output"; the keys of a dict; "output_0", "output_1" ... for several; "boxes_0", "boxes_1" ... for dicts in a
    list. A list of one counts as its content.

    Args:
        output: As the model returned it.
        taken: Names that an output must not have, the inputs'.

    Raises:
        ArgumentError: there is something else in it, or nothing.
    """
    named: dict[str, Tensor] = {}
    for path, tensor in _leaves(output, ()):
        words = [part for part in path if isinstance(part, str)]
        numbers = [str(part) for part in path if isinstance(part, int)]
        name = "_".join([*(words or ["output"]), *numbers])
        while name in named or name in taken:
            name += "_"
        named[name] = tensor
    if not named:
        raise ArgumentError("the model returns no tensor: there is nothing to export")
    return named


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _leaves(item, path if len(value) == 1 else (*path, index))
    elif value is not None:
        expected = "tensors in dicts, lists and tuples"
        raise ArgumentError(f"the model returns a {type(value).__name__}: expected {expected}")
