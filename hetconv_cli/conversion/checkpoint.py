"""The file that `convert` writes: one safetensors file, tensors and a YAML recipe in its metadata. No pickle, ever."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree

from hetconv_cli.conversion.convert import Conversion
from hetconv_cli.conversion.rewrite import apply_plan
from hetconv_cli.conversion.trace import forward_pass
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.files import check_target, replacing
from hetconv_cli.models.build import build
from hetconv_cli.models.example import ExampleSpec, parse_input
from hetconv_cli.models.source import Source, resolve
from hetconv_cli.models.weights_file import with_versions
from hetconv_cli.plan import Plan
from hetconv_cli.plan_file import plan_from_data, plan_to_data, shown
from hetconv_cli.strict_yaml import read_mapping, write
from hetconv_cli.versions import installed

FORMAT = 1
_KEY = "hetconv"  # of the recipe in the file's metadata
_PACKAGES = ("hetconv-cli", "torch", "torchvision", "timm", "safetensors")


@dataclass(frozen=True)
class Recipe:
    """What the file says of itself.

    Attributes:
        source: The MODEL whose layers were rewritten, as on the command line.
        plan: What became of every Conv2d.
        example: What the network is called with, or None.
        weights: Where its weights come from, for people.
        tied: Names that share one tensor: name -> the name it is stored under.
        sha256: Of the tensors, in order of their names.
    """

    source: str | None
    plan: Plan
    example: ExampleSpec | None
    weights: str
    tied: dict[str, str]
    sha256: str


def save(
    conversion: Conversion,
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    overwrite: bool = False,
    original: nn.Module | None = None,
) -> Path:
    """Writes a conversion to one safetensors file, through a temporary file in the same folder.

    Args:
        conversion: From `convert` or `load`.
        path: The file; an existing one is refused unless `overwrite`.
        source: The MODEL the network came from ("resnet34"), so that `load` can rebuild it. Without it `load` needs
            the original network.
        overwrite: Replace an existing file.
        original: The network that was converted. With it (and the conversion's example) the file is read back before
            it takes its name, and must give the same outputs bit for bit.

    Returns:
        The path.

    Raises:
        ArgumentError: the file exists, or cannot be written there.
        HetconvError: the file read back does not compute the same.
    """
    target = Path(path)
    check_target(target, overwrite)
    tensors, tied = _distinct(conversion.model.state_dict())
    recipe = {
        "hetconv": FORMAT,
        "source": source,
        "input": None if conversion.example is None else conversion.example.describe(),
        "input_kind": None if conversion.example is None else conversion.example.kind,
        "weights": conversion.weights,
        "versions": installed(_PACKAGES),
        "sha256": _digest(tensors),
        "tied": tied,
        "plan": plan_to_data(conversion.plan),
    }
    with replacing(target) as temporary:
        try:
            save_file(tensors, temporary, metadata={_KEY: write(recipe)})
        except SafetensorError as error:
            raise HetconvError(f"{target}: could not be written: {error}") from error
        if original is not None and conversion.example is not None:
            _check_same_outputs(conversion, load(temporary, original), conversion.example.make())
    return target


def _check_same_outputs(written: Conversion, reloaded: Conversion, inputs: tuple[Any, ...]) -> None:
    outputs = []
    for model in (written.model, reloaded.model):
        with forward_pass(model):
            outputs.append(_pytree.tree_leaves(model(*inputs)))
    if not all(_same(one, other) for one, other in zip(*outputs, strict=True)):
        raise HetconvError("the file, read back, does not give the same outputs bit for bit; it was not kept")


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)
    return one == other


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> Conversion:
    """Reads a file that `save` or `hetconv convert` wrote. Runs no code from it.

    Args:
        path: The file.
        model: The original network, needed where the file's source is a user's own Python file (which is not run
            because a file names it) or unknown. Its layers are rewritten on a copy; its weights are not used.

    Raises:
        ArgumentError: no such file, not one that `save` wrote, damaged, or `model` is needed or does not fit.
    """
    recipe, tensors = read_recipe(path), _read_tensors(path)
    if _digest(tensors) != recipe.sha256:
        raise ArgumentError(f"{path}: the tensors are not those that were written (sha256 differs); convert again")
    original = model if model is not None else _rebuild(recipe, path)
    new_model = apply_plan(original, recipe.plan)
    _check_tied(recipe.tied, set(new_model.state_dict()), tensors, path)
    tensors |= {name: tensors[stored] for name, stored in recipe.tied.items()}
    try:
        new_model.load_state_dict(with_versions(tensors, new_model), assign=True)
    except RuntimeError as error:
        raise ArgumentError(f"{path}: does not fit the network {recipe.source}: {_first_problem(error)}") from None
    _tie(new_model, recipe.tied)
    return Conversion(new_model.eval(), recipe.plan, recipe.example, recipe.weights)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """What the file says of itself, without reading its tensors.

    Raises:
        ArgumentError: no such file, or not one that `save` wrote.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise ArgumentError(f"{path}: a safetensors file, but not one that `hetconv convert` wrote (no recipe in it)")
    data = read_mapping(metadata[_KEY], f"{path}: recipe")
    if data.get("hetconv") != FORMAT:
        raise ArgumentError(
            f"{path}: format {shown(data.get('hetconv'))}, this version reads {FORMAT}; update hetconv-cli"
        )
    texts = {key: data.get(key) for key in ("source", "weights", "input", "input_kind", "sha256")}
    tied = data.get("tied") or {}
    named = isinstance(tied, dict) and all(isinstance(text, str) for pair in tied.items() for text in pair)
    if not named or not all(value is None or isinstance(value, str) for value in texts.values()):
        raise ArgumentError(f"{path}: recipe: expected text in source, weights, input, sha256 and tied")
    return Recipe(
        source=texts["source"],
        plan=plan_from_data(data.get("plan"), f"{path}: recipe"),
        example=_example(texts["input"], texts["input_kind"]),
        weights=texts["weights"] or "unknown",
        tied=tied,
        sha256=texts["sha256"] or "",
    )


# --- tensors ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ArgumentError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ArgumentError(f"{path}: not a readable safetensors file ({error}); expected one of convert's") from None


def _read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    # In memory of their own: tensors inside a mapped file are not aligned, and aligned ones add up in another order.
    with _opened(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def _distinct(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state's tensors, each stored once; and for every further name of one, the name it is stored under."""
    stored: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise HetconvError(f"{name}: the model's state holds a {type(tensor).__name__}; only tensors can be saved")
        if tensor.is_meta:
            raise ArgumentError(
                f"{name}: the model has no weights (it is on the meta device), so there is nothing to save"
            )
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        if tensor.numel() and key in stored:
            tied[name] = stored[key]
        else:
            stored[key] = name
            tensors[name] = tensor.detach().to("cpu").contiguous().clone()  # own memory: views would be refused
    return tensors, tied


def _digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _check_tied(
    tied: dict[str, str], names: set[str], tensors: dict[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Tied names come from the file: only tensors of the network may be joined, and only to stored ones."""
    for name, stored in tied.items():
        if name not in names or name in tensors or stored not in tensors or stored not in names:
            raise ArgumentError(
                f"{path}: recipe: ties {shown(name)} to {shown(stored)}, which this network does not have"
            )


def _tie(model: nn.Module, tied: dict[str, str]) -> None:
    """Makes parameters that shared memory share it again; load_state_dict(assign=True) has made each its own."""
    for name, stored in tied.items():
        owner, _, attribute = name.rpartition(".")
        source_owner, _, source_attribute = stored.rpartition(".")
        setattr(model.get_submodule(owner), attribute, getattr(model.get_submodule(source_owner), source_attribute))


# --- recipe -------------------------------------------------------------------------------------------------------


def _example(text: str | None, kind: str | None) -> ExampleSpec | None:
    if text is None:
        return None
    return ExampleSpec(parse_input(text).shapes, "images" if kind == "images" else "tensors")


def newest_checkpoint(folder: Path) -> Path | None:
    """The file that `save` wrote last into `folder`, or None; other safetensors files are passed over."""
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        with contextlib.suppress(ArgumentError):
            read_recipe(file)
            return file
    return None


def original_of(checkpoint: Source, named: str | None = None) -> tuple[Source, Recipe]:
    """The network that a checkpoint was made from, and its recipe; `named` says which, where it is a user's own code.

    Raises:
        ArgumentError: not a file that `save` wrote, or its network is a user's own code.
    """
    recipe = read_recipe(checkpoint.name)
    return resolve(named) if named else _known_source(recipe, checkpoint.name), recipe


def _rebuild(recipe: Recipe, path: str | os.PathLike[str]) -> nn.Module:
    return build(_known_source(recipe, path)).model


def _known_source(recipe: Recipe, path: str | os.PathLike[str]) -> Source:
    if recipe.source is None:
        raise ArgumentError(f"{path}: does not say which network it is; pass the original: hc.load(path, model)")
    source = resolve(recipe.source)
    if source.kind in ("file", "checkpoint"):
        raise ArgumentError(
            f"{path}: its network is {recipe.source}, code of your own, which is not run because a file names it;"
            " pass it: --source FILE.py:CALLABLE, or hc.load(path, model)"
        )
    return source


def _first_problem(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0])[:200]
