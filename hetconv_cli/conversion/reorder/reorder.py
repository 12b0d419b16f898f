"""reorder(): a copy of a network with its channels in an order that suits its classes, and the same function."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetconv_cli.arrangement import Arrangement, classes
from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.copying import copy_structure, full_copy
from hetconv_cli.conversion.reorder.assignment import Integers
from hetconv_cli.conversion.reorder.classes import LayerEnergy, Orders, Segment, Side, identity
from hetconv_cli.conversion.reorder.flow import Flow, state_of, watch
from hetconv_cli.conversion.reorder.labels import Label, StateAxis
from hetconv_cli.conversion.reorder.proof import prove
from hetconv_cli.conversion.reorder.report import LayerShare, ReorderReport, StreamReport
from hetconv_cli.conversion.reorder.search import best_orders
from hetconv_cli.conversion.trace import trace
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models.example import inputs_of
from hetconv_cli.ops.hetconv2d.taps import split_window
from hetconv_cli.plan import Change, LayerPlan, Part, Plan, Rules, Wish, make_plan

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reordering:
    """A network whose channels stand in another order.

    Attributes:
        model: The copy; the network that was passed in is unchanged.
        report: What moved, what could not, and what it is worth.
    """

    model: nn.Module
    report: ReorderReport


def reorder(model: nn.Module, plan: Plan | Part, example: Any, *, seed: int = 0) -> Reordering:
    """Puts channels that belong together next to each other, so that the classes of a conversion keep more.

    Nothing is converted. Parameters and buffers are permuted in such a way that the network computes the same, which
    is proven in float64 on `example`; no operation is added. Feature maps inside come in another order.

    Args:
        model: Any network; it is left as it was.
        plan: What the network will be converted by, or a part for all layers.
        example: A tensor, a tuple of tensors, or a list of images that `model` takes.
        seed: Of the search's random starts. The same seed gives the same order.

    Raises:
        ArgumentError: the plan converts nothing, or has anything but HetConv layers; the model has no weights.
        HetconvError: the model does not run on `example`, or the proof fails.

    Example:
        >>> reordering = reorder(model, 8, torch.randn(1, 3, 224, 224))
        >>> conversion = convert(reordering.model, p=8)
    """
    inputs = inputs_of(example)
    if not isinstance(plan, Plan):
        candidates = find_candidates(model, trace(copy_structure(model), inputs))
        plan = make_plan(candidates, Rules(Wish(p=plan)))
    return reorder_for(model, plan, inputs, seed=seed)


def check_can_be_reordered(plan: Plan) -> None:
    """Raises ArgumentError where the plan has no classes to order channels for, or more than plain HetConv layers."""
    for layer in plan.converted:
        if layer.change and (layer.change.variant != "hetconv" or layer.change.se or layer.absorbs):
            what = "a pair's one convolution" if layer.absorbs else str(layer.change)
            raise ArgumentError(
                f"reorder is for HetConv layers alone, but {layer.name or 'the model'} becomes {what}: leave it out"
            )
    if not plan.converted:
        raise ArgumentError("reorder: the plan converts no layer, so there are no classes to order channels for")


def reorder_for(
    model: nn.Module,
    plan: Plan,
    inputs: tuple[Any, ...],
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Reordering:
    """`reorder` for a plan that is made and inputs that are tensors."""
    begun = time.perf_counter()
    check_can_be_reordered(plan)
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ArgumentError(
            "reorder: the model has no weights (it is on the meta device), so there is nothing to order"
        )
    progress("following channels", 0, 3)
    copy = full_copy(model)
    flow = watch(copy_structure(model), inputs)
    layers = _layers(copy, plan, flow)
    numbers = {root: number for number, root in enumerate(flow.streams.roots())}
    sizes = [flow.streams.size(root) for root in numbers]
    free = [number for root, number in numbers.items() if flow.streams.pinned(root) is None]
    progress("choosing classes", 1, 3)
    orders = best_orders(list(layers.values()), sizes, free, seed)
    apply_orders(copy, flow, {root: torch.tensor(orders[number]) for root, number in numbers.items()})
    progress("proving", 2, 3)
    error = prove(model, copy, inputs)
    return Reordering(copy, _report(plan, flow, layers, orders, error, time.perf_counter() - begun))


def apply_orders(model: nn.Module, flow: Flow, orders: Mapping[int, Tensor]) -> None:
    """Permutes the parameters and buffers of `model` in place, each axis as its streams say.

    `orders` has for a stream the channel that shall stand at each place.
    """
    state = state_of(model)
    with torch.no_grad():
        for (name, axis), label in flow.labels.items():
            index = _index(flow, label, orders)
            if not torch.equal(index, torch.arange(len(index))):
                tensor = state[name]
                tensor.copy_(tensor.index_select(axis, index.to(tensor.device)))


def _index(flow: Flow, label: Label, orders: Mapping[int, Tensor]) -> Tensor:
    """Which place of an axis goes where: for each new place the old one."""
    parts, start = [], 0
    for piece in label:
        size = flow.streams.size(piece.stream)
        order = orders.get(piece.stream, torch.arange(size))
        parts.append((start + order[:, None] * piece.repeat + torch.arange(piece.repeat)).flatten())
        start += size * piece.repeat
    return torch.cat(parts)


def ring_energies(conv: nn.Conv2d) -> tuple[Tensor, float]:
    """The energy [N, M] of each kernel's taps around its centre, and that of all taps together, centres included.

    Energy is the sum of squares, in double precision: what the taps add to the output's mean square on white inputs.
    """
    rings, centres = split_window(conv.weight.detach().double().cpu())
    around = (rings**2).sum(-1)
    return around, float(around.sum() + (centres**2).sum())


def _layers(model: nn.Module, plan: Plan, flow: Flow) -> dict[str, LayerEnergy]:
    """The plan's layers with their energies; a layer counts by what goes, relative to all of its taps."""
    convs = {layer.name: _convolution(model, layer) for layer in plan.converted}
    names = {id(tensor): name for name, tensor in state_of(model).items()}
    numbers = {root: number for number, root in enumerate(flow.streams.roots())}
    layers = {}
    for layer in plan.converted:
        change, conv = layer.change, convs[layer.name]
        assert isinstance(change, Change)
        around, total = ring_energies(conv)
        if not around.isfinite().all():
            raise HetconvError(f"reorder: {layer.name or 'the model'}: its weights hold NaN or infinite numbers")
        p, arrangement = change.p or 1, change.arrangement or "blocked"
        filters, channels = (
            Side(_segments(flow, numbers, (names.get(id(conv.weight), ""), axis), size), _classes(size, p, arrangement))
            for axis, size in enumerate(conv.weight.shape[:2])
        )
        layers[layer.name] = LayerEnergy(around.numpy(), filters, channels, p, 1 / total if total else 0.0)
    return layers


def _classes(size: int, p: int, arrangement: Arrangement) -> Integers:
    return np.array(classes(size, p, arrangement), dtype=np.int64)


def _convolution(model: nn.Module, layer: LayerPlan) -> nn.Conv2d:
    conv = dict(model.named_modules()).get(layer.name)
    if not isinstance(conv, nn.Conv2d) or conv.weight.shape[:2] != (
        layer.geometry.out_channels,
        layer.geometry.in_channels,
    ):
        raise ArgumentError(f"the plan converts {layer.name!r}, but the model has no such Conv2d")
    return conv


def _segments(flow: Flow, numbers: Mapping[int, int], axis: StateAxis, size: int) -> tuple[Segment, ...]:
    label = flow.labels.get(axis)
    if label is None:
        return (Segment(None, size),)
    return tuple(
        Segment(
            None if flow.streams.pinned(piece.stream) else numbers[piece.stream],
            flow.streams.size(piece.stream),
            piece.repeat,
        )
        for piece in label
    )


def _report(
    plan: Plan,
    flow: Flow,
    layers: Mapping[str, LayerEnergy],
    orders: Orders,
    error: float,
    seconds: float,
) -> ReorderReport:
    ways = (identity([len(order) for order in orders]), orders)
    shares = []
    weighted, everything = [0.0, 0.0], 0.0
    for layer in plan.converted:
        energy = layers[layer.name]
        total = float(energy.energies.sum())
        before, after = (energy.kept(way) for way in ways)
        weighted = [weighted[0] + energy.weight * before, weighted[1] + energy.weight * after]
        everything += energy.weight * total
        assert layer.change is not None
        shares.append(LayerShare(layer.name, layer.change.p or 1, _share(before, total), _share(after, total)))
    return ReorderReport(
        layers=tuple(shares),
        streams=_streams(flow, orders),
        before=_share(weighted[0], everything),
        after=_share(weighted[1], everything),
        error=error,
        unseen=flow.unseen,
        seconds=seconds,
    )


def _share(part: float, total: float) -> float:
    return part / total if total else 1.0  # where there is nothing to lose, all is kept


def _streams(flow: Flow, orders: Orders) -> tuple[StreamReport, ...]:
    tensors: dict[int, dict[str, None]] = {}
    for (name, _), label in flow.labels.items():
        for piece in label:
            tensors.setdefault(piece.stream, {})[name] = None
    return tuple(
        StreamReport(
            channels=len(order),
            tensors=tuple(tensors.get(root, ())),
            pinned=flow.streams.pinned(root),
            moved=int((order != np.arange(len(order))).sum()),
        )
        for root, order in zip(flow.streams.roots(), orders, strict=True)
    )
