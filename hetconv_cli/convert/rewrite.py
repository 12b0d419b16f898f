"""Applies a plan: a copy of the network with new layers in the convolutions' places."""

from collections import OrderedDict

from torch import nn

from hetconv_cli.convert.candidates import geometry_of
from hetconv_cli.convert.copying import full_copy
from hetconv_cli.convert.pairs import BETWEEN, pair_geometry
from hetconv_cli.convert.transfer import Transfer, bias_of, one_convolution, transfer_weights
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
from hetconv_cli.plan import Change, LayerPlan, Plan, impossible


def apply_plan(model: nn.Module, plan: Plan, transfer: Transfer = "center") -> nn.Module:
    """A deep copy of `model` with the plan carried out; a convolution under several names becomes ONE new module.

    A pair's new layer stands in the depthwise convolution's place; what it absorbs becomes nn.Identity. New layers take
    over device, dtype, training flag and requires_grad. `model` itself is left as it was; where the model is one bare
    Conv2d, the new layer is returned.

    Raises:
        ArgumentError: the plan names a Conv2d that the model has not, or has with another geometry.
        HetconvError: the model cannot be copied.
    """
    new_model = full_copy(model)
    modules = dict(new_model.named_modules())
    replacements = {_convolution(modules, layer): layer for layer in plan.converted}
    new: dict[nn.Module, nn.Module] = {}
    for conv, layer in replacements.items():
        if layer.change:
            new[conv] = _new_layer(_whole(modules, conv, layer, transfer), layer.change, transfer)
            for absorbed in map(modules.__getitem__, layer.absorbs):
                new[absorbed] = nn.Identity().train(absorbed.training)
    for parent in list(new_model.modules()):
        for name, child in parent._modules.items():  # named_children() would skip a child's second name
            if child is not None and child in new:
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
    geometry = geometry_of(conv)
    if layer.absorbs:
        geometry = pair_geometry(geometry, geometry_of(_pointwise(modules, layer)))
    if geometry != layer.geometry:
        raise ArgumentError(f"{layer.name}: the plan was made for {layer.geometry}; the model has {geometry}")
    if layer.change and (problem := impossible(layer.change, geometry)):
        raise ArgumentError(f"{layer.name}: a change to {layer.change} is not possible: {problem}")
    return conv


def _whole(modules: dict[str, nn.Module], conv: nn.Conv2d, layer: LayerPlan, transfer: Transfer) -> nn.Conv2d:
    """The convolution itself, or the dense one that its pair comes nearest to."""
    if not layer.absorbs:
        return conv
    between = [modules[name] for name in layer.absorbs[:-1]]
    return one_convolution(conv, between, _pointwise(modules, layer), geometry=layer.geometry, transfer=transfer)


def _pointwise(modules: dict[str, nn.Module], layer: LayerPlan) -> nn.Conv2d:
    """The convolution that a pair ends with; a plan may come from a file, so what stands between is looked at too."""
    *between, last = layer.absorbs
    for name in between:
        if type(modules.get(name)) not in BETWEEN:
            raise ArgumentError(f"{layer.name}: the plan's pair goes through {name!r}, no normalisation or activation")
    conv = modules.get(last)
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or conv.kernel_size != (1, 1):
        raise ArgumentError(f"{layer.name}: the plan's pair ends with {last!r}, no pointwise convolution of this model")
    return conv


def _new_layer(conv: nn.Conv2d, change: Change, transfer: Transfer) -> nn.Module:
    new: nn.Module = conv
    if change.variant != "standard":
        new = layer = build_layer(conv, change)
        transfer_weights(layer, conv, transfer)
        layer.requires_grad_(conv.weight.requires_grad)
        if conv.bias is not None:
            bias_of(layer).requires_grad_(conv.bias.requires_grad)
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
