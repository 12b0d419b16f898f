"""The peer: a HetConv as public code runs it, a grouped K x K convolution plus a 1 x 1 over all channels.

Nothing is fused and nothing in place. The grouped convolution keeps its centre taps, which are zeros here because the
1 x 1 holds the whole centre; they are multiplied all the same, as in public code, where both have weights of their own.
"""

from torch import nn

from hetconv_cli.conversion.trace import Trace
from hetconv_cli.equations import gwc_macs, hetconv_macs
from hetconv_cli.export.lowering import with_two_convolutions
from hetconv_cli.plan import Plan


def in_public_form(model: nn.Module) -> nn.Module:
    """A copy of `model` with two plain convolutions and their sum for every HetConv2d, no classes joined."""
    return with_two_convolutions(model, least_channels=1)


def more_macs(plan: Plan, trace: Trace) -> int:
    """MACs that the public form executes above the paper's count of the same HetConv layers.

    A layer executes equation (7) as printed, N (M/P K^2 + M) for an output position: the grouped convolution with its
    centre taps, and the 1 x 1 over all channels, which has those taps again. HetConv needs N M/P less, equation (2).
    """
    total = 0
    for layer in plan.converted:
        change, g = layer.change, layer.geometry
        if change is None or change.variant != "hetconv":
            continue
        for call in trace.of(layer.name):
            size = (call.output[-2], call.output[-1])
            batch = call.output[0] if len(call.output) == 4 else 1
            both = gwc_macs(g.in_channels, g.out_channels, g.kernel, size, change.p or 1)
            total += batch * (both - hetconv_macs(g.in_channels, g.out_channels, g.kernel, size, change.p or 1))
    return total
