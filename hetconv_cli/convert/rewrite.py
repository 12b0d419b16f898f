"""Applies a plan: a copy of the network with new layers in the convolutions' places."""

import copy
from collections import OrderedDict

from torch import nn

from hetconv_cli.convert.candidates import geometry_of
from hetconv_cli.convert.transfer import Transfer, transfer_weights
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
from hetconv_cli.plan import Change, LayerPlan, Plan


def apply_plan(model: nn.Module, plan: Plan, transfer: Transfer = "center") -> nn.Module:
    """A deep copy of `model` with the plan carried out; a convolution under several names becomes ONE new module.

    New layers take over device, dtype, training flag and requires_grad. `model` itself is left as it was; where the
    model is one bare Conv2d, the new layer is returned.

    Raises:
        ArgumentError: the plan names a Conv2d that the model has not, or has with another geometry.
        HetconvError: the model cannot be copied.
    """
    try:
        new_model = copy.deepcopy(model)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise HetconvError(f"the model cannot be copied ({first_line}); copy it before its first forward") from error
    modules = dict(new_model.named_modules())
    replacements = {_convolution(modules, layer): layer for layer in plan.converted}
    new = {conv: _new_layer(conv, layer.change, transfer) for conv, layer in replacements.items() if layer.change}
    for parent in list(new_model.modules()):
        for name, child in parent._modules.items():  # named_children() would skip a child's second name
            if isinstance(child, nn.Conv2d) and child in new:
                setattr(parent, name, new[child])
    if isinstance(new_model, nn.Conv2d):
        return new.get(new_model, new_model)
    return new_model


def core_name(layer: LayerPlan) -> str:
    """Name, in the rewritten model, of what stands in the convolution's place, without a squeeze-and-excitation."""
    if not (layer.change and layer.change.se):
        return layer.name
    return f"{layer.name}.conv" if layer.name else "conv"


def _convolution(modules: dict[str, nn.Module], layer: LayerPlan) -> nn.Conv2d:
    conv = modules.get(layer.name)
    if not isinstance(conv, nn.Conv2d):
        raise ArgumentError(f"the plan converts {layer.name!r}, but the model has no Conv2d of that name")
    if geometry_of(conv) != layer.geometry:
        raise ArgumentError(f"{layer.name}: the plan was made for {layer.geometry}, the model has {geometry_of(conv)}")
    return conv


def _new_layer(conv: nn.Conv2d, change: Change, transfer: Transfer) -> nn.Module:
    new: nn.Module = conv
    if change.variant != "standard":
        new = layer = build_layer(conv, change)
        transfer_weights(layer, conv, transfer)
        layer.requires_grad_(conv.weight.requires_grad)
    if change.se:
        new = nn.Sequential(OrderedDict(conv=new, se=_squeeze_excitation(conv, change.se)))
    return new.train(conv.training)


def build_layer(conv: nn.Conv2d, change: Change) -> HetConv2d | GroupwisePointwise:
    """The layer that `change` puts in the place of `conv`, with uninitialised weights on its device."""
    g = geometry_of(conv)
    arguments = (g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation, g.bias, g.padding_mode)
    dtype = conv.weight.dtype
    layer: HetConv2d | GroupwisePointwise
    if change.variant == "hetconv":
        arrangement = change.arrangement or "blocked"
        layer = HetConv2d(*arguments, p=change.p or 1, arrangement=arrangement, device="meta", dtype=dtype)
    elif change.variant == "gwc":
        layer = GroupwisePointwise(*arguments, groups=change.groups or 1, device="meta", dtype=dtype)
    else:
        layer = DepthwisePointwise(*arguments, device="meta", dtype=dtype)
    return layer.to_empty(device=conv.weight.device)  # made on meta first, so that no random number is drawn


def _squeeze_excitation(conv: nn.Conv2d, reduction: int) -> nn.Module:
    from torchvision.ops import SqueezeExcitation  # only where asked for: the library works without torchvision

    squeezed = max(1, conv.out_channels // reduction)
    module: nn.Module = SqueezeExcitation(conv.out_channels, squeezed)
    return module.to(device=conv.weight.device, dtype=conv.weight.dtype)
