"""Building a model without allocating its weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

M = TypeVar("M", bound=nn.Module)


def build_on_meta(make: Callable[[], M]) -> M:
    """Call `make` so that the parameters and buffers of the module it returns are on the meta device.

    Neither of the two ways builds every model. As `torch.device("meta")` some constructors fail that compute with
    tensors (regnet's `linspace(...).tolist()`); with parameters and buffers moved as they are registered, some
    that replace what they registered (ssdlite320). So the second is tried where the first fails; it holds one
    layer's real weights at a time.
    """
    try:
        with torch.device("meta"):
            model = make()
    except Exception:  # whatever a constructor does with a tensor that has no values
        with _registering_on_meta():
            model = make()
    return model.to("meta")


@contextmanager
def _registering_on_meta() -> Iterator[None]:
    def move_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or is_lazy(parameter) or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    def move_buffer(module: nn.Module, name: str, buffer: torch.Tensor) -> torch.Tensor | None:
        return None if buffer is None or is_lazy(buffer) else buffer.to("meta")

    # torch's documentation lets a hook return the replacement, its annotation does not
    parameter_hook = register_module_parameter_registration_hook(cast(Any, move_parameter))
    buffer_hook = register_module_buffer_registration_hook(cast(Any, move_buffer))
    try:
        yield
    finally:
        parameter_hook.remove()
        buffer_hook.remove()
