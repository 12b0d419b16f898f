"""The Conv2d modules of a network, and what stands in the way of replacing one."""

from collections import Counter

from torch import nn

from hetconv_cli.convert.trace import Trace
from hetconv_cli.geometry import Geometry, resolve_padding
from hetconv_cli.plan import Candidate

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def find_candidates(model: nn.Module, trace: Trace | None = None) -> list[Candidate]:
    """Every Conv2d of `model`, subclasses too, in order; a module used under several names is one candidate.

    `trace` tells which of them read a concatenation; without it none does.
    """
    names: dict[nn.Conv2d, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            names.setdefault(module, []).append(name)
    owners = owners_of(model)
    concatenations = trace.reads_concatenation() if trace else frozenset()
    return [
        Candidate(
            name=first,
            geometry=geometry_of(module),
            obstacle=obstacle(module, owners),
            aliases=tuple(others),
            reads_concatenation=first in concatenations,
        )
        for module, (first, *others) in names.items()
    ]


def geometry_of(conv: nn.Conv2d) -> Geometry:
    """The facts of a Conv2d. For an even kernel under padding='same' the padding is the smaller side's."""
    kernel, stride, dilation = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation)
    try:
        padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
        padding = resolve_padding(padding, kernel, stride, dilation)
    except ValueError:  # a subclass may pad in its own way; it is kept, so only its report needs the geometry
        padding = (0, 0)
    return Geometry(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def obstacle(conv: nn.Conv2d, owners: Counter[int]) -> str | None:
    """Why this module must stay whatever its geometry, or None.

    `owners` counts, by the id of a parameter, the modules that hold it.
    """
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin):
        return "lazy: not initialised yet"
    if hasattr(conv, "parametrizations"):
        return "parametrized"
    if type(conv) is not nn.Conv2d:
        return f"a subclass of Conv2d ({type(conv).__name__})"
    if "forward" in vars(conv):
        return "its forward was replaced"
    if not isinstance(conv.weight, nn.Parameter):
        return "its weight is not a Parameter (weight norm or pruning)"
    if any(getattr(conv, hooks) for hooks in HOOKS):
        return "has hooks"
    if not conv.weight.is_floating_point():
        return f"weights of type {str(conv.weight.dtype).removeprefix('torch.')}"
    if any(owners[id(parameter)] > 1 for parameter in conv.parameters(recurse=False)):
        return "shares its weight with another module"
    return None


def owners_of(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)
