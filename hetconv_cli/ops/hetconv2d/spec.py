"""What one HetConv is, worked out once: geometry, part, arrangement, and how its classes become equal groups."""

from dataclasses import dataclass

from hetconv_cli.arrangement import Arrangement, classes, members
from hetconv_cli.geometry import Geometry

Order = tuple[int, ...]


@dataclass(frozen=True)
class HetConvSpec:
    """A HetConv without its weights.

    The last four fields map classes to the equal, contiguous groups of a grouped convolution; None means "as they
    stand". Classes without a filter (fewer filters than classes) have no group.
    """

    geometry: Geometry
    p: int
    arrangement: Arrangement
    groups: int
    group_channels: Order | None  # input channels, group by group
    group_filters: Order | None  # filters, group by group; a small class repeats its last to fill the group
    positions: Order | None  # where filter n stands in `group_filters`


def make_spec(geometry: Geometry, p: int, arrangement: Arrangement) -> HetConvSpec:
    """The spec of a layer; `p` must divide `geometry.in_channels`."""
    filters = members(geometry.out_channels, p, arrangement)
    channels = members(geometry.in_channels, p, arrangement)
    pairs = [(mine, own) for mine, own in zip(filters, channels, strict=True) if mine]
    size = max(len(mine) for mine, _ in pairs)
    group_filters = [n for mine, _ in pairs for n in mine + mine[-1:] * (size - len(mine))]
    group_channels = [m for _, own in pairs for m in own]
    in_order = group_filters == list(range(geometry.out_channels))
    position = {n: place for place, n in enumerate(group_filters)}
    return HetConvSpec(
        geometry=geometry,
        p=p,
        arrangement=arrangement,
        groups=len(pairs),
        group_channels=None if group_channels == list(range(geometry.in_channels)) else tuple(group_channels),
        group_filters=None if in_order else tuple(group_filters),
        positions=None if in_order else tuple(position[n] for n in range(geometry.out_channels)),
    )


def own_channels(spec: HetConvSpec) -> list[list[int]]:
    """For each filter the channels of its class, ascending: those on which it has K x K kernels."""
    channels = members(spec.geometry.in_channels, spec.p, spec.arrangement)
    return [channels[of] for of in classes(spec.geometry.out_channels, spec.p, spec.arrangement)]
