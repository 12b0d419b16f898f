"""timm's models, where timm is installed."""

import contextlib
import sys
from types import ModuleType
from typing import Any

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


def build_timm(name: str, weights: str, device: Device) -> BuiltModel:
    """Build `timm.create_model(name)`; without weights nothing is downloaded."""
    timm = _import_timm()
    _check_name(timm, name)
    path = None
    if weights.lower() == "none":
        model = build_on_meta(lambda: timm.create_model(name)) if device == "meta" else timm.create_model(name)
        described = "random"
    elif (path := weights_path(weights)) is not None:
        state = read_state_dict(path)
        model = timm.create_model(name)
        load_state_dict(model, state, path)
        described = f"file {path.name}"
    else:
        tagged = _with_tag(timm, name, weights)
        model = _create_pretrained(timm, tagged)
        described = f"timm {tagged}"
    example = ExampleSpec(((1, *model.pretrained_cfg["input_size"]),))
    return BuiltModel(model.to(device), example, described)


def _import_timm() -> ModuleType:
    import_torchvision()  # timm imports it: say first if it does not fit torch
    try:
        import timm
    except ImportError as error:
        raise ArgumentError("timm is not installed: pip install 'hetconv-cli[timm]'") from error
    module: ModuleType = timm
    return module


def _check_name(timm: ModuleType, name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        meant = f": did you mean {', '.join(near)}?" if near else ""
        raise ArgumentError(f"unknown timm model {name!r}{meant}")
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        raise ArgumentError(f"unknown timm model {name!r}: expected {_expected(timm, architecture)}")


def _with_tag(timm: ModuleType, name: str, weights: str) -> str:
    """The pretrained name for a `--weights` argument: the name's own tag or timm's first for DEFAULT."""
    architecture = name.partition(".")[0]
    known = timm.list_pretrained(f"{architecture}.*") + timm.list_pretrained(architecture)
    wanted = name if weights.upper() == "DEFAULT" else f"{architecture}.{weights}"
    if not known or (wanted not in known and wanted != architecture):
        raise ArgumentError(f"unknown weights {weights!r} for timm/{name}: expected {_expected(timm, architecture)}")
    return wanted


def _expected(timm: ModuleType, architecture: str) -> str:
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    return f"none, DEFAULT, {', '.join(tags)} or a file" if tags else "none or a file (timm has no weights for it)"


def _create_pretrained(timm: ModuleType, name: str) -> nn.Module:
    try:
        with torch_loads_weights_only(), contextlib.redirect_stdout(sys.stderr):
            model: nn.Module = timm.create_model(name, pretrained=True)
            return model
    except Exception as error:  # the hub client has errors of its own for every kind of network trouble
        raise HetconvError(
            f"weights of timm/{name} could not be downloaded ({one_line(error)}): use --weights FILE"
        ) from error


def pretrained_cfg(name: str) -> dict[str, Any]:
    """What timm says of the input that a model was trained on."""
    return dict(_import_timm().create_model(name).pretrained_cfg)
