"""A user's own weights: read without running code, and checked against the model name by name."""

import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.one_line import one_line

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model")  # what training scripts put around a state dict
_PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name


def weights_path(weights: str) -> Path | None:
    """The file that a `--weights` argument names; None if it is a name such as DEFAULT.

    Raises:
        ArgumentError: If it names a file that is not there.
    """
    path = Path(weights)
    if not (weights.endswith(_SUFFIXES) or os.sep in weights or "/" in weights or path.is_file()):
        return None
    if path.is_dir():
        raise ArgumentError(f"weights {weights!r}: expected a file, got a folder")
    if not path.is_file():
        raise ArgumentError(f"weights {weights!r}: no such file")
    return path


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors file, or from a torch file without ever running its pickle code.

    A dict under "state_dict" or "model", and the prefix "module." on all names, are taken off.

    Raises:
        ArgumentError: If the file cannot be read, or holds anything but named tensors.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ArgumentError(f"weights file {path}: expected a state dict, got {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ArgumentError(
                f"weights file {path}: expected a state dict of tensors, got {type(tensor).__name__} at {name!r}"
            )
    state = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _read_torch(path: Path) -> Any:
    try:
        with torch_loads_weights_only():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArgumentError(
            f"weights file {path}: refused, it is damaged or holds more than tensors, which could run code: "
            "save a plain model.state_dict()"
        ) from error
    except Exception as error:  # a damaged file may raise nearly anything
        raise ArgumentError(f"weights file {path}: cannot be read ({one_line(error)})") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if any(key.startswith("hetconv") for key in file.metadata() or ()):
                raise ArgumentError(f"weights file {path}: written by hetconv convert: give it as MODEL instead")
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ArgumentError(f"weights file {path}: cannot be read ({one_line(error)})") from error


@contextmanager
def torch_loads_weights_only() -> Iterator[None]:
    """Within it every `torch.load` of this process refuses to run pickle code, whoever calls it.

    torchvision and timm call `torch.load(weights_only=False)` on files in their caches; torch's documented variable
    TORCH_FORCE_WEIGHTS_ONLY_LOAD overrules that. Its opposite, if a user has set it, is set aside.
    """
    changed = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        with warnings.catch_warnings():
            # that the restricted reader may not know a newer pickle: where it does not, it refuses the file
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy weights into a model, if names and shapes agree in full.

    Counts of batches that BatchNorm has seen may be missing: old files have none, and nothing reads them in eval.

    Raises:
        ArgumentError: If they do not agree, with the first names that differ.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in _differing(missing, unexpected)]
        raise ArgumentError(f"weights file {path} does not fit the model: {' and '.join(parts)}")
    wrong = [name for name in state if state[name].shape != getattr(own[name], "shape", None)]
    if wrong:
        name = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ArgumentError(
            f"weights file {path} does not fit the model: {name}: expected {list(own[name].shape)}, "
            f"got {list(state[name].shape)}{more}"
        )
    try:
        model.load_state_dict(with_versions(state, model), strict=False)
    except RuntimeError as error:  # sparse, quantized or meta tensors
        raise ArgumentError(f"weights file {path} does not fit the model: {one_line(error)}") from error


def with_versions(state: Mapping[str, torch.Tensor], model: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """The state with the version of each of `model`'s modules, as torch notes it beside the tensors.

    A file of plain tensors does not keep versions, and torchvision's MNASNet loads nothing without its own.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned


def _differing(missing: list[str], unexpected: list[str]) -> list[tuple[str, list[str]]]:
    both = [("missing", missing), ("unexpected", unexpected)]
    return [(kind, names) for kind, names in both if names]


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
