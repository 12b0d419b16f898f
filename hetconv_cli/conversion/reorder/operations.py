"""What torch's operations do to channels: which axes a known one ties together, and what its result carries.

Channels are dimension 1 of an activation, wherever they are; a rule that is not sure raises NotChannelwiseError.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from hetconv_cli.conversion.reorder.labels import Bindings, Label, Piece, StateAxis

CHANNELS = 1
StateAxes = frozenset[StateAxis]


class NotChannelwiseError(Exception):
    """Why an operation needs the channels that it reads in their order."""


@dataclass(frozen=True)
class Axes:
    """What is known of a tensor's dimensions.

    Attributes:
        label: Of dimension 1 of an activation, or None.
        state: Of what was made from parameters and buffers alone: the axes that a dimension is in the order of.
    """

    label: Label | None = None
    state: Mapping[int, StateAxes] = field(default_factory=dict)


@dataclass
class Operation:
    """One operation that ran: what it was given by the schema's names, what it gave, and what is known of both."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    bindings: Bindings
    axes_of: Callable[[Tensor], Axes]

    @property
    def name(self) -> str:
        """Such as 'relu', in place or not."""
        name: str = self.func._schema.name
        return name.removeprefix("aten::").rstrip("_")

    def __getitem__(self, argument: str) -> Any:
        """An argument by its name in the schema; its default where it was not given."""
        for position, known in enumerate(self.func._schema.arguments):
            if known.name == argument:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(argument, known.default_value)
        return None

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [leaf for leaf in _pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def results(self) -> list[Tensor]:
        """Every tensor among the results."""
        return [leaf for leaf in _pytree.tree_leaves(self.output) if isinstance(leaf, Tensor)]

    def label(self, argument: str) -> Label:
        """Of the activation that is this argument."""
        label = self.axes_of(self[argument]).label
        if label is None:
            raise NotChannelwiseError(f"is made from parameters or constants by {self.name}")
        return label

    def fix(self, axes: Iterable[StateAxis], why: str) -> None:
        """These axes of parameters keep their order."""
        self.bindings.fix(axes, why)


Found = Iterator[tuple[Tensor, Axes]]  # the results of an operation, with what is known of each
Rule = Callable[[Operation], Found]


# --- convolutions and linear layers ---------------------------------------------------------------------------------


def _convolution(op: Operation) -> Found:
    x, weight, bias, groups = op["input"], op["weight"], op["bias"], op["groups"]
    axes, state = op.axes_of(x), op.axes_of(weight).state
    if x.dim() != weight.dim() or 0 not in state or 1 not in state or axes.state:
        raise NotChannelwiseError("is read by a convolution with a computed weight")
    reads, writes = (state[0], state[1]) if op["transposed"] else (state[1], state[0])
    if groups == 1:
        _bind_input(op, axes, reads)
        label = op.bindings.label_of(writes, op.output.shape[CHANNELS])
    else:
        label = _depthwise(op, axes.label, writes)
    _bind_vector(op, bias, label)
    yield op.output, Axes(label)


def _bind_input(op: Operation, axes: Axes, reads: StateAxes) -> None:
    if axes.label is None:
        op.fix(reads, "reads the network's input or constants")
    else:
        op.bindings.bind(reads, axes.label)


def _depthwise(op: Operation, label: Label | None, writes: StateAxes) -> Label:
    groups, channels = op["groups"], op["input"].shape[CHANNELS]
    if groups != channels or op["transposed"] or label is None:
        raise NotChannelwiseError(f"is read by a convolution in {groups} groups")
    filters = op["weight"].shape[0] // groups
    wide = tuple(Piece(piece.stream, piece.repeat * filters) for piece in label)
    op.bindings.bind(writes, wide)
    return wide


def _bind_vector(op: Operation, vector: Tensor | None, label: Label) -> None:
    """A bias, a running mean: one number a channel."""
    if vector is None:
        return
    state = op.axes_of(vector).state
    if vector.dim() != 1 or 0 not in state:
        raise NotChannelwiseError(f"meets computed numbers in {op.name}")
    op.bindings.bind(state[0], label)


def _matmul(op: Operation) -> Found:
    """mm(x, W') and addmm(b, x, W'): a linear layer, on [n, channels]."""
    x, weight = (op["mat1"], op["mat2"]) if op.name == "addmm" else (op["self"], op["mat2"])
    axes, state = op.axes_of(x), op.axes_of(weight).state
    if 0 not in state or 1 not in state or axes.state:
        raise NotChannelwiseError("is read by a product with a computed matrix")
    _bind_input(op, axes, state[0])
    label = op.bindings.label_of(state[1], op.output.shape[CHANNELS])
    if op.name == "addmm":
        _bind_vector(op, op["self"], label)
    yield op.output, Axes(label)


def _batch_norm(op: Operation) -> Found:
    label = op.label("input")
    for vector in ("weight", "bias", "running_mean", "running_var"):
        _bind_vector(op, op[vector], label)
    yield op.results()[0], Axes(label)


# --- element by element ---------------------------------------------------------------------------------------------


def _pointwise(op: Operation) -> Found:
    """Any function of one place of each argument, with broadcasting."""
    known = [(tensor, op.axes_of(tensor)) for tensor in op.tensors()]
    out = op.results()[0]
    _check_writes(op)
    label = next((axes.label for _, axes in known if axes.label is not None), None)
    if label is None:
        yield out, Axes(state=_state_of_parameters(op, known, out))
        return
    for tensor, axes in known:
        _bind_operand(op, tensor, axes, label, out)
    for result in op.results():
        yield result, Axes(label)


def _check_writes(op: Operation) -> None:
    """What is written to must be an activation: a parameter or buffer is there after the pass."""
    written = [argument.name for argument in op.func._schema.arguments if argument.is_write]
    if any(op.axes_of(op[name]).state for name in written if isinstance(op[name], Tensor)):
        raise NotChannelwiseError("is written to a parameter or buffer")


def _bind_operand(op: Operation, tensor: Tensor, axes: Axes, label: Label, out: Tensor) -> None:
    at = CHANNELS - (out.dim() - tensor.dim())  # dimensions are aligned from the last one
    channels = tensor.shape[at] if at >= 0 else 1
    if axes.label is not None:
        if at != CHANNELS or channels != out.shape[CHANNELS]:
            raise NotChannelwiseError(f"is spread over other dimensions by {op.name}")
        op.bindings.streams.unify(label, axes.label)
    elif axes.state:
        op.fix((axis for dim, group in axes.state.items() if dim != at for axis in group), "meets other dimensions")
        if channels > 1 and at not in axes.state:
            raise NotChannelwiseError(f"meets computed numbers in {op.name}")
        op.bindings.bind(axes.state.get(at, ()) if channels > 1 else (), label)
    elif channels > 1:
        raise NotChannelwiseError(f"meets constants in {op.name}")


def _state_of_parameters(op: Operation, known: list[tuple[Tensor, Axes]], out: Tensor) -> dict[int, StateAxes]:
    """Of a result made from parameters: which axes each dimension is in the order of."""
    together: dict[int, StateAxes] = {}
    for dim in range(out.dim()):
        groups, is_known = [], True
        for tensor, axes in known:
            at = dim - (out.dim() - tensor.dim())
            groups.append(axes.state.get(at, frozenset()))
            is_known &= at < 0 or tensor.shape[at] == 1 or bool(groups[-1])
        axes_here = frozenset().union(*groups)
        if axes_here and is_known:
            together[dim] = axes_here
        else:
            op.fix(axes_here, f"meets constants in {op.name}")
    return together


def _concatenation(op: Operation) -> Found:
    tensors = op["tensors"]
    dim = op["dim"] % op.output.dim()
    labels = [op.axes_of(tensor).label for tensor in tensors]
    if any(tensor.dim() != op.output.dim() or op.axes_of(tensor).state for tensor in tensors):
        raise NotChannelwiseError("is concatenated with parameters")
    if dim == CHANNELS:
        fixed = "a constant or the network's input, concatenated"
        pieces = [
            label if label is not None else op.bindings.streams.new(tensor.shape[CHANNELS], fixed)
            for label, tensor in zip(labels, tensors, strict=True)
        ]
        yield op.output, Axes(tuple(piece for label in pieces for piece in label))
        return
    known = [label for label in labels if label is not None]
    if len(known) < len(tensors):
        raise NotChannelwiseError("is concatenated with constants, along another dimension")
    for label in known[1:]:
        op.bindings.streams.unify(known[0], label)
    yield op.output, Axes(known[0])


# --- shapes ---------------------------------------------------------------------------------------------------------


def _view(op: Operation) -> Found:
    x, out = op.tensors()[0], op.output
    axes = op.axes_of(x)
    if axes.label is not None:
        yield out, Axes(_label_in_shape(axes.label, tuple(x.shape), tuple(out.shape)))
        return
    wide, now = ([dim for dim, size in enumerate(tensor.shape) if size > 1] for tensor in (x, out))
    if len(wide) > 1 or len(now) != len(wide):
        raise NotChannelwiseError(f"is cut anew by {op.name}")
    known = {new: axes.state[old] for old, new in zip(wide, now, strict=True) if old in axes.state}
    yield out, Axes(state=known)


def _label_in_shape(label: Label, before: tuple[int, ...], after: tuple[int, ...]) -> Label:
    """Images and channels must stay the first two dimensions, or all but the images become one."""
    if len(after) >= 2 and before[:2] == after[:2]:
        return label
    if len(after) == 2 and before[0] == after[0]:
        places = after[1] // before[1]
        return tuple(Piece(piece.stream, piece.repeat * places) for piece in label)
    raise NotChannelwiseError("is cut into other shapes")


def _expand(op: Operation) -> Found:
    x, out = op["self"], op.output
    axes, more = op.axes_of(x), op.output.dim() - op["self"].dim()
    if axes.label is not None and (more or x.shape[CHANNELS] != out.shape[CHANNELS]):
        raise NotChannelwiseError("is spread over other dimensions")
    yield out, Axes(axes.label, {dim + more: group for dim, group in axes.state.items()})


def _permute(op: Operation) -> Found:
    x = op["self"]
    axes = op.axes_of(x)
    if op.name == "t":
        dims = list(range(x.dim()))[::-1]
    elif op.name == "permute":
        dims = [dim % x.dim() for dim in op["dims"]]
    else:
        dims = list(range(x.dim()))
        one, other = op["dim0"] % x.dim(), op["dim1"] % x.dim()
        dims[one], dims[other] = other, one
    if axes.label is not None and dims.index(CHANNELS) != CHANNELS:
        raise NotChannelwiseError(f"is moved to another dimension by {op.name}")
    yield op.output, Axes(axes.label, {new: axes.state[old] for new, old in enumerate(dims) if old in axes.state})


def _along_dims(op: Operation) -> Found:
    """Reductions and cuts along the dimensions behind the channels: mean, slice, unsqueeze, softmax, ..."""
    x = op["self"]
    if op.name in ("squeeze", "unsqueeze") and op.axes_of(x).state:
        yield from _view(op)
        return
    label = op.label("self")
    dims = op["dims"] if op["dim"] is None else op["dim"]
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    range_of = x.dim() + 1 if op.name == "unsqueeze" else x.dim()
    if not dims or any(dim % range_of <= CHANNELS for dim in dims):
        raise NotChannelwiseError(f"is read along its channels by {op.name}")
    for result in op.results():
        yield result, Axes(label)


def _constant(op: Operation) -> Found:
    """Made from a size; nothing but the type is read."""
    yield op.output, Axes()


def _spatial(op: Operation) -> Found:
    """Pooling, padding, resizing: on the dimensions behind the channels."""
    (x,), label = op.tensors(), op.label(op.func._schema.arguments[0].name)
    dims = re.search(r"([123])d", op.name)
    pads = op["pad"] or ()
    if (dims and x.dim() != int(dims[1]) + 2) or len(pads) > 2 * (x.dim() - 2):
        raise NotChannelwiseError(f"is taken for something else than [images, channels, ...] by {op.name}")
    for result in op.results():
        yield result, Axes(label)


_POINTWISE = (
    "alias clone copy detach dropout empty_like full_like hardswish hardtanh lift_fresh native_dropout ones_like"
    " _prelu_kernel _to_copy zeros_like"
)
_ALONG = (
    "_softmax _log_softmax amax amin argmax argmin cumsum flip linalg_vector_norm logsumexp max mean min prod select"
    " slice squeeze std sum unsqueeze var var_mean"
)
_SPATIAL = (
    "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices constant_pad_nd"
    " _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d"
    " reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
    " upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d"
    " upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE.split(), _pointwise),
    **dict.fromkeys(_ALONG.split(), _along_dims),
    **dict.fromkeys(_SPATIAL.split(), _spatial),
    **dict.fromkeys(["new_empty", "new_full", "new_ones", "new_zeros"], _constant),
    **dict.fromkeys(["view", "_unsafe_view", "reshape"], _view),
    **dict.fromkeys(["t", "transpose", "permute"], _permute),
    **dict.fromkeys(["addmm", "mm"], _matmul),
    "cat": _concatenation,
    "convolution": _convolution,
    "expand": _expand,
    "native_batch_norm": _batch_norm,
}


def rule_of(func: Any) -> Rule | None:
    """What is known of an operation of torch's dispatcher, or None. Nothing is known of what packages add."""
    namespace, _, name = func._schema.name.partition("::")
    if namespace != "aten":
        return None
    rule = RULES.get(name.rstrip("_"))
    if func._schema.is_mutable and rule is not None:
        return rule if rule is _pointwise else None  # out=: other views of what is written to are not known
    if rule is None and torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
        return _pointwise
    return rule
