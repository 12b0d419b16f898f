"""Copies of a model that do not double its memory."""

import copy

from torch import nn


def copy_structure(model: nn.Module) -> nn.Module:
    """A deep copy of modules, buffers and settings that shares the parameters: for reading, never for training.

    Replacing modules, `eval()` and whatever a forward writes to buffers then stay in the copy.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)
