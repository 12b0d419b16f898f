"""MACs by module name, and what makes two such tallies differ."""

from collections import defaultdict
from collections.abc import Mapping

from torch import nn

Tally = dict[str, int]  # module name -> MACs done in that module itself, its children apart


def add(total: Tally, more: Mapping[str, int], prefix: str = "") -> None:
    """Adds `more` to `total`, its names put under `prefix`."""
    for name, macs in more.items():
        full = join(prefix, name)
        total[full] = total.get(full, 0) + macs


def join(prefix: str, name: str) -> str:
    """A module's full name, from its parent's and its own; either may be the root's, empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def by_layer(tally: Mapping[str, int], layers: frozenset[str]) -> Tally:
    """What happens inside one of the `layers` under that layer's name, or 'NAME.se' for what follows it there."""
    result: Tally = defaultdict(int)
    for name, macs in tally.items():
        result[_owner(name, layers)] += macs
    return dict(result)


def _owner(name: str, layers: frozenset[str]) -> str:
    """The layer that holds the module `name`, or `name` itself."""
    parts = name.split(".") if name else []
    for length in range(len(parts) + 1):
        prefix = ".".join(parts[:length])
        if prefix in layers:
            return join(prefix, "se") if parts[length : length + 1] == ["se"] else prefix
    return name


def differences(this: Mapping[str, int], that: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, int]:
    """By kind of module, how much more `this` counts than `that`; kinds on which they agree are left out."""
    result: dict[str, int] = defaultdict(int)
    for name in {**this, **that}:
        result[kinds.get(name, name)] += this.get(name, 0) - that.get(name, 0)
    return {kind: difference for kind, difference in result.items() if difference}


def kinds_of(model: nn.Module) -> dict[str, str]:
    """The class of each module, by name."""
    return {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}
