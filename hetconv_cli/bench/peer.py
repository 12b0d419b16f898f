"""The peer: a HetConv as public code runs it, a grouped K x K convolution plus a 1 x 1 over all channels."""

import torch
from torch import Tensor, nn

from hetconv_cli.conversion.trace import Trace
from hetconv_cli.equations import gwc_macs, hetconv_macs
from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d.grouped import group_kernels
from hetconv_cli.ops.hetconv2d.spec import Order
from hetconv_cli.ops.hetconv2d.taps import crop, pad_as, reach
from hetconv_cli.plan import Plan


class GroupedPlusPointwise(nn.Module):
    """A HetConv2d as two plain convolutions and an addition, nothing fused and nothing in place.

    Input [batch, M, H, W]; output as the HetConv2d's. For inference: it copies the layer's weights.

    The grouped convolution keeps its centre taps, which are zeros here because the 1 x 1 holds the whole centre; they
    are multiplied all the same, as in public code, where both have weights of their own.
    """

    def __init__(self, layer: HetConv2d) -> None:
        super().__init__()
        spec, g = layer.spec, layer.geometry
        self.geometry = g
        self.channels, self.positions = spec.group_channels, spec.positions  # None where the channels divide evenly
        kernels, pointwise = group_kernels(layer.weight_ring.detach(), spec), layer.weight_1x1.detach()
        padding = g.padding if g.padding_mode == "zeros" else (0, 0)  # other modes pad the input beforehand
        # The 1 x 1 reads the windows' centres: the input is cut where windows begin inside it, padded where outside.
        beyond = [have - need for have, need in zip(padding, reach(g), strict=True)]
        self.cut = tuple(max(0, -rows) for rows in beyond)
        self.grouped = nn.Conv2d(
            kernels.shape[1] * spec.groups,
            len(kernels),
            g.kernel,
            g.stride,
            padding,
            g.dilation,
            spec.groups,
            bias=False,
            device=pointwise.device,
            dtype=pointwise.dtype,
        )
        self.pointwise = nn.Conv2d(
            g.in_channels,
            g.out_channels,
            1,
            g.stride,
            (max(0, beyond[0]), max(0, beyond[1])),
            bias=g.bias,
            device=pointwise.device,
            dtype=pointwise.dtype,
        )
        with torch.no_grad():
            self.grouped.weight.copy_(kernels)
            self.pointwise.weight.copy_(pointwise)
            if self.pointwise.bias is not None and layer.bias is not None:
                self.pointwise.bias.copy_(layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Both convolutions on [batch, M, H, W], and their sum."""
        if self.geometry.padding_mode != "zeros":
            input = pad_as(input, self.geometry)
        grouped = _select(self.grouped(_select(input, self.channels)), self.positions)
        pointwise: Tensor = self.pointwise(crop(input, *self.cut))
        return grouped + pointwise


def _select(tensor: Tensor, channels: Order | None) -> Tensor:
    return tensor if channels is None else tensor.index_select(1, torch.tensor(channels, device=tensor.device))


def in_public_form(model: nn.Module) -> nn.Module:
    """`model` with a `GroupedPlusPointwise` in the place of every HetConv2d; `model` itself is changed, and returned.

    A layer that several parents share becomes one module that they share.
    """
    new = {layer: GroupedPlusPointwise(layer).eval() for layer in model.modules() if isinstance(layer, HetConv2d)}
    if isinstance(model, HetConv2d):
        return new[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, HetConv2d):
                parent._modules[name] = new[child]
    return model


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
