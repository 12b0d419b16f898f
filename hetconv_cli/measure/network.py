"""A network ready to be counted: without real weights where it runs without, and its trace."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree

from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.pairs import with_pairs
from hetconv_cli.conversion.trace import Trace, trace
from hetconv_cli.errors import HetconvError
from hetconv_cli.models.build import build
from hetconv_cli.models.device import DeviceName
from hetconv_cli.models.example import ExampleSpec, parse_input
from hetconv_cli.models.source import Source
from hetconv_cli.plan import Candidate

Place = Literal["meta"] | DeviceName


@dataclass(frozen=True)
class Network:
    """A model, the inputs that it was traced on, and the trace.

    Where the model runs on the meta device nothing here holds real weights. Where it does not, its calls may depend on
    values, and `inputs` are real.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    trace: Trace

    def candidates(self, pairs: bool = False) -> list[Candidate]:
        """Its Conv2d modules; with `pairs` each depthwise one with its pair, or why it has none."""
        candidates = find_candidates(self.model, self.trace)
        return with_pairs(candidates, self.model, self.inputs) if pairs else candidates


def prepare(make: Callable[[Place], nn.Module], example: Any, device: DeviceName = "cpu") -> Network:
    """The network that `make` gives, traced on the meta device if it runs there, else on `device`.

    Args:
        make: Gives the model, on the meta device or where it shall really run.
        example: An ExampleSpec, or a user's inputs (a tensor or a tuple).
        device: Where it runs that needs values. "cpu": a user's inputs are taken where they are.

    Raises:
        HetconvError: the model runs in neither place; the message is that of the real run.
    """
    try:
        return _network(make("meta"), example, "meta")
    except HetconvError:
        return _network(make(device), example, device)


def open_source(
    source: Source, input_size: str | None = None, device: DeviceName = "cpu"
) -> tuple[Network, ExampleSpec]:
    """The network that a MODEL argument names, with random weights at most, and the example it was traced on.

    One that does not run on the meta device (its work depends on values) is run on `device`.

    Raises:
        ArgumentError: the input is not what this model takes.
        HetconvError: the model cannot be built, or does not run.
    """
    on_meta = build(source, device="meta")
    example = parse_input(input_size, like=on_meta.example) if input_size is not None else on_meta.example

    def make(place: Place) -> nn.Module:
        return on_meta.model if place == "meta" else build(source).model.to(place)

    return prepare(make, example, device), example


def _network(model: nn.Module, example: Any, place: Place) -> Network:
    inputs = inputs_for(example, place)
    return Network(model, inputs, trace(model, inputs))


def inputs_for(example: Any, place: Place) -> tuple[Any, ...]:
    """The positional arguments that `example` stands for, there; a user's own for the CPU as they are."""
    if isinstance(example, ExampleSpec):
        return example.make(device=place)
    inputs = example if isinstance(example, tuple) else (example,)
    if place == "cpu":
        return inputs
    moved: tuple[Any, ...] = _pytree.tree_map_only(Tensor, lambda tensor: tensor.to(place), inputs)
    return moved
