"""A user's own Python file: run it, call what was named, and take the model that comes back."""

import contextlib
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models.built import BuiltModel, Device
from hetconv_cli.models.example import ExampleSpec, spec_of
from hetconv_cli.models.one_line import one_line
from hetconv_cli.models.weights_file import load_state_dict, read_state_dict, weights_path

_DEFAULT_EXAMPLE = ExampleSpec(((1, 3, 224, 224),), assumed=True)
_numbers = itertools.count()


def build_python_file(name: str, weights: str, device: Device) -> BuiltModel:
    """Build the model of "path.py:callable".

    The callable is called without arguments; a module class likewise; a module instance is taken as it is. It
    gives a module, or a module and an example (a tensor, a tuple of tensors, or a list of images).
    """
    if weights.lower() == "none":
        model, example = _make_on_meta(name) if device == "meta" else _make(name)
        return BuiltModel(model, example, f"from {name}")
    path = weights_path(weights)
    if path is None:
        raise ArgumentError(f"weights {weights!r} for {name}: expected none or a file")
    state = read_state_dict(path)
    model, example = _make(name)
    load_state_dict(model, state, path)
    return BuiltModel(model.to(device), example, f"file {path.name}")


def _make_on_meta(name: str) -> tuple[nn.Module, ExampleSpec]:
    """On the meta device if the user's code can do that, else on the CPU."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter", UserWarning)
            model, example = _make(name)
        return model.to("meta"), example
    except ArgumentError:
        raise
    except Exception:  # a user's code may do anything
        return _make(name)


def _make(name: str) -> tuple[nn.Module, ExampleSpec]:
    path, _, attribute = name.rpartition(":")
    with _users_code(name, Path(path)):
        module = _run(Path(path))
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise ArgumentError(f"{path} has no {attribute!r}; it defines {', '.join(known) or 'nothing to call'}")
    result = getattr(module, attribute)
    if not isinstance(result, (nn.Module, tuple)) and callable(result):
        with _users_code(name, Path(path)):
            result = result()
    return _split(result, name)


def _split(result: Any, name: str) -> tuple[nn.Module, ExampleSpec]:
    model, example = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        got = type(result).__name__
        raise ArgumentError(f"{name}: expected a torch.nn.Module, or a pair of one and an example, got {got}")
    if example is None:
        return model, _DEFAULT_EXAMPLE
    try:
        return model, spec_of(example)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from error


def _run(path: Path) -> ModuleType:
    """Import the file under a name of its own, so that no two files, or runs of one, share state."""
    module_name = f"hetconv_user_file_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


@contextlib.contextmanager
def _users_code(name: str, path: Path) -> Iterator[None]:
    """Run with the file's folder importable, as `python file.py` would, and with stdout kept free of its prints."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        raise HetconvError(f"{name} raised {type(error).__name__}: {one_line(error)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
