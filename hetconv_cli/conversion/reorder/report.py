"""What a reordering did: layer by layer, and stream by stream."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShare:
    """One layer of the plan.

    Attributes:
        name: In the network.
        p: Its part.
        before: Part of the energy of its taps around the centre that is inside the classes, in the first order.
        after: The same in the new order.
    """

    name: str
    p: int
    before: float
    after: float


@dataclass(frozen=True)
class StreamReport:
    """Channels that must have one order everywhere.

    Attributes:
        channels: How many.
        tensors: Parameters and buffers with an axis in this order.
        pinned: Why the order must stay, or None where it is free.
        moved: Channels that stand in another place now.
    """

    channels: int
    tensors: tuple[str, ...]
    pinned: str | None
    moved: int


@dataclass(frozen=True)
class ReorderReport:
    """Of one reordering.

    Attributes:
        layers: The layers that get classes, in the plan's order.
        streams: All streams of the network.
        before: Part of the energy inside the classes, all layers together, each relative to all of its taps.
        after: The same now.
        error: Largest difference of the outputs in float64, relative to their largest value: the proof.
        unseen: Parameters and buffers that no forward pass read; they are as they were.
        seconds: In all.
    """

    layers: tuple[LayerShare, ...]
    streams: tuple[StreamReport, ...]
    before: float
    after: float
    error: float
    unseen: tuple[str, ...]
    seconds: float

    @property
    def free(self) -> int:
        """How many streams could be reordered."""
        return sum(stream.pinned is None for stream in self.streams)
