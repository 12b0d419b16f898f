"""The paper's networks as MODEL names."""

from collections.abc import Callable
from functools import partial

from torch import nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.built import BuiltModel, Device
from hetconv_cli.models.catalog import paper_catalog
from hetconv_cli.models.cifar import mobilenet_cifar, resnet34_option_a, resnet_cifar, vgg16_cifar
from hetconv_cli.models.on_meta import build_on_meta
from hetconv_cli.models.weights_file import load_state_dict, read_state_dict, weights_path

_WITH_SE = "_se"
_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_cifar": mobilenet_cifar,
    "resnet34_option_a": resnet34_option_a,
    "vgg16_cifar": vgg16_cifar,
    **{f"resnet{depth}_cifar": partial(resnet_cifar, depth) for depth in (20, 32, 44, 56, 110)},
}


def paper_models() -> list[str]:
    """Every name, each network also with "_se": a squeeze-and-excitation after every convolution."""
    return sorted(name + suffix for name in _MAKERS for suffix in ("", _WITH_SE))


def build_paper_model(name: str, weights: str, device: Device) -> BuiltModel:
    """Build one of `paper_models()`. There are no trained weights of it to be had: "none", or a user's own file."""
    plain = name.removesuffix(_WITH_SE)
    make = partial(_MAKERS[plain], se=plain != name)
    example = paper_catalog()[name].example
    if weights.lower() == "none":
        return BuiltModel(build_on_meta(make) if device == "meta" else make(), example, "random")
    path = weights_path(weights)
    if path is None:
        raise ArgumentError(f"unknown weights {weights!r} for {name}: expected none or a file (nobody published any)")
    state, model = read_state_dict(path), make()
    load_state_dict(model, state, path)
    return BuiltModel(model.to(device), example, f"file {path.name}")
