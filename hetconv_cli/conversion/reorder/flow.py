"""One forward pass, watched operation by operation: which channels go where, down to the axes of the parameters.

The watch is at torch's dispatcher, so every operation is seen, whatever Python code called it. What an operation of
`operations.RULES` does to channels is known; every other one pins what it reads. So does whatever leaves the
dispatcher (numpy), survives the pass (a tensor kept in a module), or is the network's output.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hetconv_cli.conversion.reorder.labels import Bindings, Label, Piece, StateAxis, Streams
from hetconv_cli.conversion.reorder.operations import Axes, NotChannelwiseError, Operation, rule_of
from hetconv_cli.conversion.trace import forward_pass
from hetconv_cli.errors import HetconvError

_LEAVES = {"numpy", "__array__", "tolist", "__dlpack__"}  # functions that take values out of torch
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)  # what holds no tensor


@dataclass(frozen=True)
class Flow:
    """What one network's channels do.

    Attributes:
        streams: Every stream and whether it is free.
        labels: Of the axes of parameters and buffers that were read, by name and axis.
        unseen: Parameters and buffers that no operation read; nothing is known of what they would be applied to.
    """

    streams: Streams
    labels: dict[StateAxis, Label]
    unseen: tuple[str, ...]


def watch(model: nn.Module, inputs: tuple[Any, ...]) -> Flow:
    """The streams of `model`, found in a forward pass in eval mode on `inputs`.

    Where parameters stay unread (an auxiliary classifier), a second pass has its containers in training mode, its
    layers still in eval mode. Both passes may write to `model`'s buffers.

    Raises:
        HetconvError: the model does not run on `inputs`, or its output cannot be looked into.
    """
    seen = _Watch(model)
    with forward_pass(model), torch.random.fork_rng(devices=[]), seen, seen.guard:
        seen.end(model(*inputs))
    if seen.unseen():
        again = forward_pass(model), torch.random.fork_rng(devices=[]), _containers_in_training(model), seen, seen.guard
        with contextlib.suppress(HetconvError), contextlib.ExitStack() as stack:
            for context in again:
                stack.enter_context(context)
            seen.end(model(*inputs))
    bindings = seen.bindings
    labels = {axis: bindings.streams.resolved(label) for axis, label in bindings.labels.items()}
    return Flow(bindings.streams, labels, seen.unseen())


@contextlib.contextmanager
def _containers_in_training(model: nn.Module) -> Iterator[None]:
    for module in model.modules():
        module.training = next(module.children(), None) is not None
    yield


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a checkpoint holds, shared ones by their first name. Others are not to change."""
    saved = {id(value) for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    return {
        name: tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if id(tensor) in saved and not is_lazy(tensor)
    }


class _Watch(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bindings = Bindings(Streams())
        self._model = model
        state = state_of(model)
        self._names = {id(tensor): name for name, tensor in state.items()}
        self._state_at: dict[int, list[str]] = {}
        for name, tensor in state.items():
            self._state_at.setdefault(_address(tensor), []).append(name)
        self._dims = {name: tensor.dim() for name, tensor in state.items()}
        self._read: set[str] = set()
        self._axes: dict[int, tuple[Tensor, Axes]] = {}  # holds the tensors, so that an id is a name
        self._at: dict[int, set[int]] = {}  # the streams that a storage carries
        self._kept: list[Tensor] = []
        self.guard = _Guard(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func)
        if rule is None and func._can_decompose():  # in inference mode conv2d comes whole
            with self, torch._C.DisableTorchFunction():
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        operation = Operation(func, args, kwargs, output, self.bindings, self._axes_of)
        try:
            if rule is None:
                raise NotChannelwiseError(f"is read by {operation.name}")
            for tensor, axes in rule(operation):
                self._set(tensor, axes)
        except NotChannelwiseError as reason:
            self.pin((args, kwargs), str(reason))
        self._note_read((args, kwargs))
        self._cover(operation)
        return output

    def pin(self, values: Any, why: str) -> None:
        """Whatever these tensors carry keeps its order."""
        for tensor in _tensors(values):
            axes = self._axes_of(tensor)
            if axes.label is not None:
                self.bindings.streams.pin(axes.label, why)
            for state in axes.state.values():
                self.bindings.fix(state, why)

    def end(self, output: Any) -> None:
        """The pass is over: what it gave, and what modules kept, is in its order for all times."""
        self.pin(tensors_of(output), "reaches the network's output")
        for name, module in self._model.named_modules():
            kept = [value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")]
            for value in (*kept, *module._buffers.values()):
                tensors = [tensor for tensor in _tensors(value) if id(tensor) not in self._names]
                self.pin(tensors, f"is kept by {name or 'the network'} after the pass")

    def unseen(self) -> tuple[str, ...]:
        """State that no operation read."""
        return tuple(name for name, dims in self._dims.items() if dims and name not in self._read)

    def _axes_of(self, tensor: Tensor) -> Axes:
        """What is known of a tensor. One that shares memory with a known one in an unknown way pins it."""
        if id(tensor) in self._axes:
            return self._axes[id(tensor)][1]
        name = self._names.get(id(tensor))
        at = _address(tensor)
        if name is not None and len(self._state_at[at]) == 1:
            return Axes(state={dim: frozenset({(name, dim)}) for dim in range(tensor.dim())})
        for name in self._state_at.get(at, ()):
            self.bindings.fix([(name, dim) for dim in range(self._dims[name])], "is part of a shared tensor")
        carried = tuple(Piece(stream) for stream in self._at.get(at, ()))
        self.bindings.streams.pin(carried, "is looked at past its channels")
        return Axes()

    def _set(self, tensor: Tensor, axes: Axes) -> None:
        self._axes[id(tensor)] = (tensor, axes)
        self._carry(tensor, axes.label or ())

    def _carry(self, tensor: Tensor, label: Label) -> None:
        if label:
            self._kept.append(tensor)  # alive, so that the address of its storage is a name
            self._at.setdefault(_address(tensor), set()).update(piece.stream for piece in label)

    def _cover(self, operation: Operation) -> None:
        """Results without a label of an operation on labelled tensors (a saved mean) carry its streams all the same."""
        label = tuple(piece for tensor in operation.tensors() for piece in self._label_of(tensor))
        for tensor in operation.results():
            if id(tensor) not in self._axes and id(tensor) not in self._names:
                self._carry(tensor, label)

    def _label_of(self, tensor: Tensor) -> Label:
        return self._axes[id(tensor)][1].label or () if id(tensor) in self._axes else ()

    def _note_read(self, values: Any) -> None:
        for tensor in _tensors(values):
            self._read.update(self._state_at.get(_address(tensor), ()))


class _Guard(TorchFunctionMode):
    """What leaves torch's dispatcher pins what it takes along."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LEAVES:
            self._watch.pin((args, kwargs), f"is read by {name}()")
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of a network's output: in structures that torch knows, and in the attributes of objects.

    Raises:
        HetconvError: something in it cannot be looked into.
    """
    found: list[Tensor] = []
    for leaf in _pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_of(list(leaf.values()))
        elif hasattr(leaf, "__dict__"):
            found += tensors_of(list(vars(leaf).values()))
        elif not isinstance(leaf, _PLAIN):
            what = type(leaf).__name__
            raise HetconvError(f"reorder: the network's output holds a {what}, in which tensors cannot be looked for")
    return found
