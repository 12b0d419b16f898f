"""Which axes must have their channels in one order: streams, labels of axes, and what they are bound to. No torch.

A stream is a set of channels of which every axis that carries them must have the same order. An axis is labelled with
the streams that it carries, one behind the other (a concatenation), each channel taking one place or several in a row
(a flattened map). A stream is free until something is found that needs its order as it is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Piece:
    """All channels of a stream in its order, each `repeat` times in a row."""

    stream: int
    repeat: int = 1


Label = tuple[Piece, ...]
StateAxis = tuple[str, int]  # one axis of a parameter or buffer, by its first name


@dataclass
class Streams:
    """All streams of one network. Those found to be one are joined; each group has one member that stands for it."""

    _sizes: list[int] = field(default_factory=list)
    _joined: list[int] = field(default_factory=list)
    _pins: dict[int, str] = field(default_factory=dict)

    def new(self, size: int, pin: str | None = None) -> Label:
        """The label of an axis that carries a stream of its own."""
        stream = len(self._sizes)
        self._sizes.append(size)
        self._joined.append(stream)
        if pin is not None:
            self._pins[stream] = pin
        return (Piece(stream),)

    def root(self, stream: int) -> int:
        """The stream that stands for all that `stream` was joined with."""
        while self._joined[stream] != stream:
            self._joined[stream] = stream = self._joined[self._joined[stream]]
        return stream

    def roots(self) -> Iterator[int]:
        """Every stream, joined ones once."""
        return (stream for stream, parent in enumerate(self._joined) if stream == parent)

    def size(self, stream: int) -> int:
        """Channels of a stream."""
        return self._sizes[stream]

    def width(self, label: Label) -> int:
        """Places of an axis that is labelled so."""
        return sum(self._sizes[piece.stream] * piece.repeat for piece in label)

    def pinned(self, stream: int) -> str | None:
        """Why a stream must keep its order, or None where it is free."""
        return self._pins.get(self.root(stream))

    def pin(self, label: Label, why: str) -> None:
        """From here on these streams keep their order. The first reason is the one that is told."""
        for piece in label:
            self._pins.setdefault(self.root(piece.stream), why)

    def unify(self, one: Label, other: Label) -> None:
        """Two axes must have one order: their streams are joined, or pinned where they are cut differently."""
        if self._cut(one) != self._cut(other):
            for label in (one, other):
                self.pin(label, "meets channels that are grouped in another way")
            return
        for mine, theirs in zip(one, other, strict=True):
            self._join(self.root(mine.stream), self.root(theirs.stream))

    def resolved(self, label: Label) -> Label:
        """The label in terms of the streams that stand for others."""
        return tuple(Piece(self.root(piece.stream), piece.repeat) for piece in label)

    def _cut(self, label: Label) -> list[tuple[int, int]]:
        return [(self._sizes[piece.stream], piece.repeat) for piece in label]

    def _join(self, one: int, other: int) -> None:
        if one == other:
            return
        why = self._pins.pop(other, None)
        self._joined[other] = one
        if why is not None:
            self._pins.setdefault(one, why)


@dataclass
class Bindings:
    """The labels of the axes of parameters and buffers."""

    streams: Streams
    labels: dict[StateAxis, Label] = field(default_factory=dict)
    _fixed: dict[StateAxis, str] = field(default_factory=dict)

    def bind(self, axes: Iterable[StateAxis], label: Label) -> None:
        """These axes are in the label's order."""
        for axis in axes:
            known = self.labels.setdefault(axis, label)
            self.streams.unify(known, label)
            if axis in self._fixed:
                self.streams.pin(label, self._fixed[axis])

    def fix(self, axes: Iterable[StateAxis], why: str) -> None:
        """These axes keep their order."""
        for axis in axes:
            self._fixed.setdefault(axis, why)
            if axis in self.labels:
                self.streams.pin(self.labels[axis], why)

    def label_of(self, axes: Iterable[StateAxis], size: int) -> Label:
        """The one label of these axes, of `size` places: a new stream where none of them has a label yet."""
        axes = tuple(axes)
        known = next((self.labels[axis] for axis in axes if axis in self.labels), None)
        label = self.streams.new(size) if known is None else known
        self.bind(axes, label)
        return label
