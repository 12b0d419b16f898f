"""What the paper's "FLOPs" hold beyond the multiply-accumulates of weights; the conventions are told in docs/paper.md.

Ours never hold it: it is a column of its own.
"""

from fractions import Fraction

from torch import nn
from torchvision.ops import SqueezeExcitation

from hetconv_cli import equations
from hetconv_cli.convert.trace import Call
from hetconv_cli.measure.analytic import analytic_macs
from hetconv_cli.measure.network import Network
from hetconv_cli.plan import LayerPlan, Plan


def bias_additions(network: Network, plan: Plan) -> Fraction:
    """One addition per output element of each convolution, as tables 1 and 2 have it.

    A HetConv's are multiplied by equation (3), as its MACs are; DWC+PWC and GWC+PWC have theirs at the K x K
    convolution's outputs, which has as many channels as its input.
    """
    changed = {layer.name: layer for layer in plan.converted}
    convolutions = _convolutions(network)
    return sum(
        (_of_call(changed.get(call.module), call) for call in network.trace.calls if call.module in convolutions),
        Fraction(0),
    )


def _of_call(layer: LayerPlan | None, call: Call) -> Fraction:
    channels, height, width = call.output[-3:]
    if layer is None or layer.change is None:
        return Fraction(channels * height * width)
    if layer.change.variant == "hetconv":
        return channels * height * width * equations.hetconv_ratio(layer.geometry.kernel, layer.change.p or 1)
    return Fraction(layer.geometry.in_channels * height * width)


def squeezes_counted_again(network: Network) -> int:
    """The MACs of every squeeze-and-excitation once more: the paper counts two operations for each of its weights."""
    squeezes = _squeezes(network)
    tally = analytic_macs(network.model, network.trace)
    return sum(macs for name, macs in tally.items() if name.rpartition(".")[0] in squeezes)


def _convolutions(network: Network) -> set[str]:
    squeezes = _squeezes(network)
    return {
        name
        for name, module in network.model.named_modules()
        if isinstance(module, nn.Conv2d) and name.rpartition(".")[0] not in squeezes
    }


def _squeezes(network: Network) -> set[str]:
    return {name for name, module in network.model.named_modules() if isinstance(module, SqueezeExcitation)}
