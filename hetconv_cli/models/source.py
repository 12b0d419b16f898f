"""What a MODEL argument names, found out without importing torch or running anything."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.catalog import catalog, nearest, paper_catalog

_PYTHON_FILE = re.compile(r"(?P<path>.*\.py)(:(?P<attribute>.*))?", re.DOTALL)
_WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        kind: "torchvision", "paper" (its networks, built here), "timm", "file" (a user's Python file) or "checkpoint"
            (written by `hetconv convert`).
        name: torchvision's, the paper's or timm's name, "path.py:callable", or the path of the checkpoint.
    """

    kind: Literal["torchvision", "paper", "timm", "file", "checkpoint"]
    name: str

    def __str__(self) -> str:
        return f"timm/{self.name}" if self.kind == "timm" else self.name

    @property
    def label(self) -> str:
        """A short name that is safe as a file name: "resnet34", "build" for "net.py:build"."""
        if self.kind == "file":
            label = self.name.rpartition(":")[2]
        elif self.kind == "checkpoint":
            label = Path(self.name).stem
        else:
            label = self.name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip(".-") or "model"


def resolve(model: str) -> Source:
    """Find out what a MODEL argument names.

    Args:
        model: A torchvision name, one of the paper's networks, "timm/NAME", "path/to/file.py:callable", or a
            checkpoint of `hetconv convert`.

    Raises:
        ArgumentError: If it is none of these, or the file is not there.
    """
    for read in (_read_timm, _read_python_file, _read_checkpoint, _read_torchvision, _read_paper):
        source = read(model)
        if source is not None:
            return source
    raise _unknown(model)


def _read_timm(model: str) -> Source | None:
    if not model.startswith("timm/"):
        return None
    name = model.removeprefix("timm/")
    if not name:
        raise ArgumentError("model 'timm/': expected a name after it, such as timm/resnet50")
    return Source("timm", name)


def _read_python_file(model: str) -> Source | None:
    match = _PYTHON_FILE.fullmatch(model)
    if match is None:
        return None
    path, attribute = Path(match["path"]), match["attribute"]
    _require_file(path, model)
    if not attribute:
        raise ArgumentError(f"model {model!r}: expected what to call in the file, such as {path}:build")
    if not attribute.isidentifier():
        raise ArgumentError(f"model {model!r}: expected a Python name after the colon, got {attribute!r}")
    return Source("file", model)


def _read_checkpoint(model: str) -> Source | None:
    if not model.endswith(".safetensors"):
        return None
    _require_file(Path(model), model)
    return Source("checkpoint", model)


def _read_torchvision(model: str) -> Source | None:
    return Source("torchvision", model.lower()) if model.lower() in catalog() else None


def _read_paper(model: str) -> Source | None:
    return Source("paper", model.lower()) if model.lower() in paper_catalog() else None


def _require_file(path: Path, model: str) -> None:
    if path.is_dir():
        raise ArgumentError(f"model {model!r}: expected a file, got a folder")
    if not path.is_file():
        raise ArgumentError(f"model {model!r}: no such file: {path}")


def _unknown(model: str) -> ArgumentError:
    if not model.strip():
        return ArgumentError(f"model {model!r}: expected a name or a file, got nothing; `hetconv list` shows the names")
    if "\0" not in model and Path(model).is_dir():
        return ArgumentError(f"model {model!r}: expected a name or a file, got a folder")
    if model.endswith(_WEIGHT_SUFFIXES):
        return ArgumentError(
            f"model {model!r}: holds weights, not a network: name the network, and the file with --weights"
        )
    near = nearest(model)
    meant = f": did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?" if near else ";"
    return ArgumentError(f"unknown model {model!r}{meant} `hetconv list` shows all")
