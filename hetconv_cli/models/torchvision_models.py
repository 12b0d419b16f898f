"""torchvision's models: built without downloading, and the input that each was made for."""

import contextlib
import http.client
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models.built import BuiltModel, Device
from hetconv_cli.models.catalog import nearest
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.models.on_meta import build_on_meta
from hetconv_cli.models.one_line import one_line
from hetconv_cli.models.torchvision_import import import_torchvision
from hetconv_cli.models.weights_file import (
    load_state_dict,
    read_state_dict,
    torch_loads_weights_only,
    weights_path,
)

_AUXILIARY = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}  # heads that a state dict may or may not have


def build_torchvision(name: str, weights: str, device: Device) -> BuiltModel:
    """Build one of `torchvision.models.list_models()`; quantized_* in floating point."""
    builder = _builder(name)
    if weights.lower() == "none":
        model = _call(builder, device)
        return BuiltModel(model, native_example(name), "random")
    path = weights_path(weights)
    if path is not None:
        state = read_state_dict(path)
        model = _call(builder, "cpu", **_heads_of(name, builder, state))
        load_state_dict(model, state, path)
        return BuiltModel(model.to(device), native_example(name), f"file {path.name}")
    chosen = _named_weights(name, weights)
    model = _call_with_weights(builder, chosen)
    return BuiltModel(model.to(device), native_example(name, chosen), repr(chosen))


def _builder(name: str) -> Callable[..., nn.Module]:
    models = import_torchvision().models
    if name not in models.list_models():
        near = ", ".join(nearest(name)) or "none is near"
        raise ArgumentError(f"unknown torchvision model {name!r} (nearest: {near})")
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    return builder


def _call(builder: Callable[..., nn.Module], device: Device, **options: Any) -> nn.Module:
    """Build with `weights=None` for the model and, where there is one, its backbone: nothing is downloaded."""
    options.setdefault("weights", None)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    with warnings.catch_warnings():
        # googlenet and inception announce that their initialisation may change one day
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        if device == "meta":
            return build_on_meta(lambda: builder(**options))
        return builder(**options)


def _heads_of(name: str, builder: Callable[..., nn.Module], state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Whether to build the auxiliary heads: as the weights have them."""
    name = name.removeprefix("quantized_")
    if name in _AUXILIARY:
        return {"aux_logits": any(key.startswith(_AUXILIARY[name]) for key in state)}
    if "aux_loss" in inspect.signature(builder).parameters:
        return {"aux_loss": any(key.startswith("aux_classifier.") for key in state)}
    return {}


def _weights_enum(name: str, *, floating: bool = True) -> Any:
    """The enum of a model's weights; for quantized_* that of the network it came from, unless not `floating`."""
    enum = import_torchvision().models.get_model_weights(name)
    unquantized = next(iter(enum)).meta.get("unquantized")
    return type(unquantized) if floating and unquantized is not None else enum


def _named_weights(name: str, weights: str) -> Any:
    enum = _weights_enum(name)
    wanted = weights.rpartition(".")[2].upper()
    if weights.rpartition(".")[0] in ("", enum.__name__) and wanted in enum.__members__:
        return enum[wanted]
    names = ", ".join(["none", "DEFAULT", *(member.name for member in enum)])
    raise ArgumentError(f"unknown weights {weights!r} for {name}: expected {names} or a file")


def _call_with_weights(builder: Callable[..., nn.Module], chosen: Any) -> nn.Module:
    # torch.hub announces its download on stdout, which belongs to the data
    try:
        with torch_loads_weights_only(), contextlib.redirect_stdout(sys.stderr):
            return _call(builder, "cpu", weights=chosen, progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException) as error:
        raise HetconvError(
            f"weights {chosen!r} could not be downloaded ({one_line(error)}): fetch {chosen.url} on a machine "
            "with a network and give it with --weights FILE"
        ) from error
    except Exception as error:  # a damaged or hostile file in the cache may raise nearly anything
        cached = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))
        raise HetconvError(
            f"weights {chosen!r} could not be loaded ({one_line(error)}): delete {cached} and try again"
        ) from error


def task_of(name: str) -> str:
    """classification, quantized, detection, segmentation, video or optical_flow, as torchvision files the model."""
    package = _builder(name).__module__.split(".")[2:-1]
    task = package[0] if package else "classification"
    return "quantized" if task == "quantization" else task


def native_example(name: str, weights: Any = None) -> ExampleSpec:
    """The input that a model was made for.

    Args:
        name: One of torchvision's names.
        weights: A member of its weights enum, whose crop is taken; the smallest crop of all members if None,
            because that is what the model is built for without weights (vit_h_14: 224, not 518).
    """
    task = task_of(name)
    if task == "detection":
        return ExampleSpec(((1, 3, 800, 800),), kind="images")
    if task == "optical_flow":
        return ExampleSpec(((1, 3, 520, 960),) * 2)
    if task == "segmentation":
        return ExampleSpec(((1, 3, 520, 520),))
    members = [weights] if weights is not None else list(_weights_enum(name, floating=False))
    crop = min(_crop(member) for member in members)
    frames = (16,) if task == "video" else ()
    return ExampleSpec(((1, 3, *frames, *crop),))


def _crop(member: Any) -> tuple[int, int]:
    size = member.transforms().crop_size
    return (size[0], size[-1])


def transforms_of(name: str, weights: str) -> Any:
    """The preprocessing that belongs to named weights; None for random ones or a file's, of which nobody knows."""
    if weights.lower() == "none" or weights_path(weights) is not None:
        return None
    return _named_weights(name, weights).transforms()
