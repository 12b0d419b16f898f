"""Copies of a model: all of it, its structure with shared parameters, or its shapes on the meta device."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hetconv_cli.errors import HetconvError
from hetconv_cli.models.one_line import one_line


def full_copy(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        HetconvError: the model cannot be copied.
    """
    return _copy(model, lambda tensor: None)


def copy_structure(model: nn.Module) -> nn.Module:
    """A deep copy of modules, buffers and settings that shares the parameters: for reading, never for training.

    Replacing modules, `eval()` and whatever a forward writes to buffers then stay in the copy.

    Raises:
        HetconvError: the model cannot be copied.
    """
    return _copy(model, lambda tensor: tensor if isinstance(tensor, nn.Parameter) else None)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device; no weight is copied on the way.

    Raises:
        HetconvError: the model cannot be copied.
    """
    return _copy(model, _on_meta)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _copy(model: nn.Module, in_place_of: Callable[[Tensor], Tensor | None]) -> nn.Module:
    """A deep copy with other tensors in the place of parameters and buffers, where `in_place_of` gives any."""
    memo = {
        id(tensor): other
        for tensor in (*model.parameters(), *model.buffers())
        if (other := in_place_of(tensor)) is not None
    }
    for module in model.modules():  # weight norm and pruning leave computed weights, which deepcopy refuses
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                other = in_place_of(value.detach())
                memo[id(value)] = value.detach().clone() if other is None else other
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        problem = one_line(error)
        raise HetconvError(f"the model cannot be copied ({problem}); copy it before its first forward") from error
