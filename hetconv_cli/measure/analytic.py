"""Analytic MACs: from the paper's equations and traced shapes alone. Nothing is run here, and no counter is asked."""

from collections import defaultdict
from fractions import Fraction
from math import prod

from torch import nn

from hetconv_cli import equations
from hetconv_cli.convert.trace import Call, Trace
from hetconv_cli.geometry import Geometry
from hetconv_cli.measure.tally import Tally, join
from hetconv_cli.plan import Change, LayerPlan, Plan

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def analytic_macs(model: nn.Module, trace: Trace, plan: Plan | None = None) -> Tally:
    """MACs by module of the original `model` on the traced calls, with the plan's changes in place.

    Convolutions by equations (1), (2), (4) and (7, in the form that can be built); linear layers, other convolutions
    and nn.MultiheadAttention by their shapes. What runs outside such modules is not in here.
    """
    modules = dict(model.named_modules())
    layers = {layer.name: layer for layer in plan.converted} if plan else {}
    absorbed = plan.absorbed if plan else frozenset()
    tally: Tally = defaultdict(int)
    for call in trace.calls:
        if call.module in absorbed:
            continue
        layer = layers.get(call.module)
        if layer is None or layer.change is None:
            tally[call.module] += _module_macs(modules[call.module], call)
            continue
        tally[call.module] += _batch(call) * changed_macs(layer.geometry, layer.change, _size(call))
        if layer.change.se:
            tally[join(call.module, "se")] += _batch(call) * _se_macs(layer.geometry, layer.change.se)
    return dict(tally)


def changed_macs(g: Geometry, change: Change | None, output: equations.Size) -> int:
    """MACs of one sample of a convolution after its change; None: as it is."""
    if change is None or change.variant == "standard":
        return equations.standard_macs(g.in_channels // g.groups, g.out_channels, g.kernel, output)
    if change.variant == "hetconv":
        return equations.hetconv_macs(g.in_channels, g.out_channels, g.kernel, output, change.p or 1)
    if change.variant == "gwc":
        return equations.gwc_table_macs(g.in_channels, g.out_channels, g.kernel, output, change.groups or 1)
    return equations.dwc_macs(g.in_channels, g.out_channels, g.kernel, output)


def replaced_macs(layer: LayerPlan, output: equations.Size) -> int:
    """MACs of one sample of what a layer stands for: its convolution, or both convolutions of its pair."""
    g = layer.geometry
    if layer.absorbs:
        return equations.dwc_macs(g.in_channels, g.out_channels, g.kernel, output)
    return changed_macs(g, None, output)


def equation_ratio(g: Geometry, change: Change) -> Fraction:
    """The ratio to the standard convolution as the paper prints it: equation (3), (5) or (8); 1 for itself."""
    if change.variant == "standard":
        return Fraction(1)
    if change.variant == "hetconv":
        return equations.hetconv_ratio(g.kernel, change.p or 1)
    if change.variant == "gwc":
        return equations.gwc_ratio(g.kernel, change.groups or 1)
    return equations.dwc_ratio(g.out_channels, g.kernel)


def ratio_by_equation(plan: Plan, trace: Trace) -> float | None:
    """Equation (3), (5) or (8) over all converted layers, each weighted by its standard MACs; None: none ran.

    For a pair it is divided by equation (5), the ratio of the pair to the standard convolution.
    """
    standard = {
        layer.name: sum(_batch(call) * replaced_macs(layer, _size(call)) for call in trace.of(layer.name))
        for layer in plan.converted
    }
    total = sum(standard.values())
    if not total:
        return None
    weighted = (
        equation_ratio(layer.geometry, layer.change) / _of_standard(layer) * standard[layer.name]
        for layer in plan.converted
        if layer.change
    )
    return float(sum(weighted, Fraction(0)) / total)


def _of_standard(layer: LayerPlan) -> Fraction:
    return equations.dwc_ratio(layer.geometry.out_channels, layer.geometry.kernel) if layer.absorbs else Fraction(1)


def _se_macs(g: Geometry, reduction: int) -> int:
    """Two 1 x 1 convolutions on the pooled map, N -> N/reduction -> N."""
    return 2 * g.out_channels * max(1, g.out_channels // reduction)


def _module_macs(module: nn.Module, call: Call) -> int:
    if isinstance(module, nn.Conv2d):
        per_output = equations.standard_macs(
            module.in_channels // module.groups, module.out_channels, _pair(module.kernel_size), _size(call)
        )
        return _batch(call) * per_output
    if isinstance(module, _TRANSPOSED):
        return prod(call.inputs[0]) * (module.out_channels // module.groups) * prod(module.kernel_size)
    if isinstance(module, _CONVOLUTIONS):
        return prod(call.output) * (module.in_channels // module.groups) * prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return prod(call.output) * module.in_features
    if isinstance(module, nn.MultiheadAttention):
        return _attention_macs(module, call)
    return 0


def _attention_macs(module: nn.MultiheadAttention, call: Call) -> int:
    """Four projections, the scores and the weighted sum, for query, key and value [batch, length, features]."""
    query, key, value = call.inputs[:3]
    features = int(module.embed_dim)
    sequence = 1 if module.batch_first and len(query) == 3 else 0
    projections = sum(prod(shape) * features for shape in (query, key, value)) + prod(query) * features
    return projections + 2 * prod(query) * key[sequence]


def _batch(call: Call) -> int:
    return call.output[0] if len(call.output) == 4 else 1


def _size(call: Call) -> equations.Size:
    return call.output[-2], call.output[-1]


def _pair(kernel: tuple[int, ...]) -> equations.Size:
    height, width = kernel
    return height, width
