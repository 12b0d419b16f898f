"""What `analyze` finds, as plain data. Counts are MACs; renderers turn them into FLOPs where a user asks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Macs:
    """MACs of the whole model by each way of counting."""

    analytic: int
    thop: int
    dispatcher: int
    executed: int


@dataclass(frozen=True)
class ConvertedMacs:
    """MACs of the converted layers alone; `measured` is the dispatcher's."""

    analytic: int
    measured: int
    executed: int


@dataclass(frozen=True)
class Ratio:
    """Of the converted layers to what they replace; None where no converted layer ran.

    `by_equation` is equation (3), (5) or (8) as printed, `analytic` from counts by equations, `measured` from
    the dispatcher's counts of the standard and of the rewritten model.
    """

    equation: Literal[3, 5, 8] | None
    by_equation: float | None
    analytic: float | None
    measured: float | None


@dataclass(frozen=True)
class VariantReport:
    """One network: the original ("standard") or a rewritten one."""

    name: Literal["standard", "hetconv", "dwc", "gwc"]
    p: int | Literal["pc"] | None
    groups: int | None
    se: bool
    converted_layers: int
    kept_layers: int
    macs: Macs
    converted_macs: ConvertedMacs
    ratio: Ratio
    params: int
    macs_reduced_pct: float
    params_reduced_pct: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LayerReport:
    """One Conv2d of the original network. `macs` over all its calls; `output` (H, W) of the last one, None: never ran.

    `convertible`: its kind allows a HetConv (odd kernel above 1 x 1, no groups, a plain Conv2d), or its pair does;
    `reason` says why it is kept all the same, or why its kind does not allow it. `pair`: the other convolution of the
    depthwise + pointwise pair that is converted as one; None: it is in no such pair, or pairs were not asked for.
    """

    name: str
    m: int
    n: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    output: tuple[int, int] | None
    calls: int
    macs: int
    params: int
    convertible: bool
    reason: str | None
    pair: str | None = None


@dataclass(frozen=True)
class FlopsReport:
    """Every variant of one network on one input. `replayed`: all on the calls of one run of the standard network."""

    model: str
    input: tuple[tuple[int, ...], ...]
    variants: tuple[VariantReport, ...]
    layers: tuple[LayerReport, ...]
    replayed: bool
