"""What the classes of a network's layers keep, and what each place of a stream is worth to each of its channels.

An order stands for where each channel goes: `order[place]` is the channel that stands there. A filter n and a channel
m of a layer have K x K kernels together where the classes of their places are the same; what is kept is the sum of the
energies E[n, m] of those pairs. No torch here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from hetconv_cli.conversion.reorder.assignment import Floats, Integers, assign

Orders = list[Integers]  # of each stream, the channel at each place
_NOWHERE = -1  # the class of a channel whose stream has no order yet


@dataclass(frozen=True)
class Segment:
    """A part of a layer's axis: all channels of a stream (None: channels in fixed order), `repeat` places for each."""

    stream: int | None
    channels: int
    repeat: int = 1


@dataclass(frozen=True)
class Side:
    """One axis of a layer, filters or channels: what it carries, and the class of each place."""

    segments: tuple[Segment, ...]
    classes: Integers

    def starts(self) -> list[tuple[int, Segment]]:
        """Each segment with the place where it begins."""
        widths = [segment.channels * segment.repeat for segment in self.segments]
        return list(zip(np.cumsum([0, *widths])[:-1].tolist(), self.segments, strict=True))

    def classes_of(self, orders: Orders, placed: Collection[int] | None = None) -> Integers:
        """The class of each channel under these orders; -1 where `placed` is given and its stream is not in it."""
        found = []
        for start, segment in self.starts():
            where = np.arange(segment.channels)
            if segment.stream is not None:
                where = np.argsort(orders[segment.stream])
            there = (start + where[:, None] * segment.repeat + np.arange(segment.repeat)).ravel()
            unknown = placed is not None and segment.stream is not None and segment.stream not in placed
            found.append(np.full(len(there), _NOWHERE) if unknown else self.classes[there])
        return np.concatenate(found)


@dataclass(frozen=True)
class LayerEnergy:
    """One layer that gets classes.

    Attributes:
        energies: [filters, channels] in their first order, at least zero: what goes where a pair is not in one class.
        filters: The axis of filters.
        channels: The axis of channels.
        classes: How many there are, P.
        weight: What a unit of energy counts.
    """

    energies: Floats
    filters: Side
    channels: Side
    classes: int
    weight: float = 1.0

    def kept(self, orders: Orders) -> float:
        """The energy of the pairs that are in one class."""
        rows = self.filters.classes_of(orders)
        by_class = _by_class(self.energies, self.channels.classes_of(orders), self.classes)
        return float(by_class[np.arange(len(rows)), rows].sum())


def identity(sizes: Sequence[int]) -> Orders:
    """Every channel where it is."""
    return [np.arange(size) for size in sizes]


def value(layers: Sequence[LayerEnergy], orders: Orders) -> float:
    """What all layers keep, by their weights."""
    return sum(layer.weight * layer.kept(orders) for layer in layers)


def _by_class(energies: Floats, classes: Integers, count: int) -> Floats:
    """[rows, count]: each row's energy on the columns of each class."""
    members = np.zeros((energies.shape[1], count))
    known = np.flatnonzero(classes != _NOWHERE)
    members[known, classes[known]] = 1
    return energies @ members


@dataclass(frozen=True)
class Role:
    """What a stream is to a layer: its filters, or its channels, from place `start` on."""

    layer: LayerEnergy
    is_filter: bool
    start: int
    segment: Segment

    @property
    def _slice(self) -> slice:
        return slice(self.start, self.start + self.segment.channels * self.segment.repeat)

    def classes(self) -> Integers:
        """[channels, repeat]: the class of each of the stream's places."""
        side = self.layer.filters if self.is_filter else self.layer.channels
        return side.classes[self._slice].reshape(self.segment.channels, self.segment.repeat)

    def profiles(self) -> Floats:
        """[channels, other side]: the energies of each of the stream's channels."""
        energies = self.layer.energies if self.is_filter else self.layer.energies.T
        rows = energies[self._slice].reshape(self.segment.channels, self.segment.repeat, -1)
        summed: Floats = rows.sum(1)
        return summed

    def other_streams(self) -> set[int | None]:
        """The streams on the layer's other side; None among them where there are channels in fixed order."""
        other = self.layer.channels if self.is_filter else self.layer.filters
        return {segment.stream for segment in other.segments}

    def by_class(self, orders: Orders, placed: Collection[int] | None) -> Floats:
        """[channels, repeat, P]: what each channel would keep in each class, all other streams as they are."""
        layer, segment = self.layer, self.segment
        other = layer.channels if self.is_filter else layer.filters
        energies = layer.energies if self.is_filter else layer.energies.T
        by_class = _by_class(energies[self._slice], other.classes_of(orders, placed), layer.classes)
        return layer.weight * by_class.reshape(segment.channels, segment.repeat, layer.classes)


class FreeStream:
    """One stream that may be reordered. Places that are alike in every role make one group."""

    def __init__(self, number: int, roles: Sequence[Role]) -> None:
        self.number, self.roles = number, tuple(roles)
        self.size = roles[0].segment.channels
        signatures = np.concatenate([role.classes() for role in roles], axis=1)
        self._signatures, group = np.unique(signatures, axis=0, return_inverse=True)
        self.groups: Integers = group.ravel()
        self.capacities: list[int] = np.bincount(self.groups).tolist()

    @property
    def meets_itself(self) -> bool:
        """Whether a layer both reads and writes it, so that what it keeps is no sum over channels."""
        return any(self.number in role.other_streams() for role in self.roles)

    def benefits(self, orders: Orders, placed: Collection[int] | None = None) -> Floats:
        """[channels, groups]: what each channel keeps in each group; with `placed` only what those streams decide."""
        total, column = np.zeros((self.size, len(self.capacities))), 0
        for role in self.roles:
            by_class = role.by_class(orders, placed)
            for repeat in range(role.segment.repeat):
                total += by_class[:, repeat, self._signatures[:, column]]
                column += 1
        return total

    def order_of(self, benefits: Floats) -> Integers:
        """The best order for benefits [channels, groups]; the channels of one group stay in their first order."""
        order = np.empty(self.size, dtype=np.int64)
        order[np.argsort(self.groups, kind="stable")] = np.argsort(assign(benefits, self.capacities), kind="stable")
        return order

    def sum_of(self, benefits: Floats, order: Integers) -> float:
        """What the channels keep together in this order."""
        return float(benefits[order, self.groups].sum())


def free_streams(layers: Sequence[LayerEnergy], free: Collection[int]) -> list[FreeStream]:
    """The free streams that any layer reads or writes, by number."""
    roles: dict[int, list[Role]] = {}
    for layer in layers:
        for side, is_filter in ((layer.filters, True), (layer.channels, False)):
            for start, segment in side.starts():
                if segment.stream is not None and segment.stream in free:
                    roles.setdefault(segment.stream, []).append(Role(layer, is_filter, start, segment))
    return [FreeStream(number, roles[number]) for number in sorted(roles)]
