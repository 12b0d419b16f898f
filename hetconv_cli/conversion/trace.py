"""One forward pass, watched: which module was called with which shapes, and which convolution reads a concatenation."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from hetconv_cli.errors import HetconvError
from hetconv_cli.models.one_line import one_line

Shape = tuple[int, ...]

# Modules whose multiply-accumulates follow from their shapes.
WATCHED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.MultiheadAttention,
)


@dataclass(frozen=True)
class Call:
    """One call of one module: its first name in the network, and the shapes of tensors in and out, batch included."""

    module: str
    inputs: tuple[Shape, ...]
    output: Shape
    reads_concatenation: bool = False


@dataclass(frozen=True)
class Trace:
    """The calls of one forward pass, in order.

    Where `on_meta` is False the pass needed values, so the calls may depend on them (detection: on the boxes found).
    """

    calls: tuple[Call, ...]
    on_meta: bool

    def of(self, module: str) -> tuple[Call, ...]:
        """The calls of one module."""
        return tuple(call for call in self.calls if call.module == module)

    def reads_concatenation(self) -> frozenset[str]:
        """Modules that read a concatenation of channels in some call."""
        return frozenset(call.module for call in self.calls if call.reads_concatenation)


class Recorder:
    """Records the calls of a model's modules while it runs; a context manager around the forward pass."""

    def __init__(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Watches the modules of these `names`; None: all whose work follows from their shapes."""
        self.calls: list[Call] = []
        self._modules = [
            (name, module)
            for name, module in model.named_modules()
            if (isinstance(module, WATCHED) if names is None else name in names)
        ]
        self._follow = _FollowConcatenations()

    def __enter__(self) -> "Recorder":
        self._handles = [
            module.register_forward_hook(self._hook(name, inspect.signature(module.forward)), with_kwargs=True)
            for name, module in self._modules
        ]
        self._follow.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        self._follow.__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, signature: inspect.Signature) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = signature.bind(*args, **kwargs).arguments.values()  # in the signature's order, however passed
            tensors = [value for value in given if isinstance(value, Tensor)]
            first = output[0] if isinstance(output, tuple) else output
            self.calls.append(
                Call(
                    name,
                    tuple(tuple(tensor.shape) for tensor in tensors),
                    tuple(first.shape),
                    any(_concatenated(tensor) for tensor in tensors),
                )
            )

        return record


def trace(model: nn.Module, inputs: tuple[Any, ...]) -> Trace:
    """The calls of one forward pass of `model` in eval mode, without gradients; the model is left as it was.

    Raises:
        HetconvError: the forward pass failed; the original error is the cause.
    """
    on_meta = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in _pytree.tree_leaves(inputs))
    with forward_pass(model), Recorder(model) as recorder:
        model(*inputs)
    return Trace(tuple(recorder.calls), on_meta)


@contextlib.contextmanager
def forward_pass(model: nn.Module) -> Iterator[None]:
    """For one forward pass: eval mode without gradients, training flags put back; failures come as HetconvError."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    except HetconvError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise HetconvError(f"the model does not run on this input ({problem}); is --input right?") from error
    finally:
        for module, flag in training.items():
            module.training = flag


# --- concatenations -----------------------------------------------------------------------------------------------

_CONCATENATE = {"cat": 0, "concat": 0, "concatenate": 0, "hstack": 1}  # and along which dimension by default
_MIX_CHANNELS = ("conv", "linear", "matmul", "bmm", "einsum", "mm")
_MARK = "_hetconv_concatenated"


def _concatenated(tensor: Tensor) -> bool:
    return getattr(tensor, _MARK, False)


class _FollowConcatenations(TorchFunctionMode):
    """Marks results of a concatenation of channels, through every function that keeps channels apart."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and output.dim() == 4:
            name = getattr(func, "__name__", "")
            if name in _CONCATENATE:
                dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else _CONCATENATE[name]))
                marked = dim in (1, -3) or _keeps_marked_channels(_pytree.tree_leaves(args), output)
            else:
                marked = not name.startswith(_MIX_CHANNELS) and _keeps_marked_channels(args, output)
            if marked:
                setattr(output, _MARK, True)
        return output


def _keeps_marked_channels(args: Sequence[Any], output: Tensor) -> bool:
    tensors = [value for value in args if isinstance(value, Tensor)]
    return any(_concatenated(t) and t.dim() == 4 and t.shape[1] == output.shape[1] for t in tensors)
