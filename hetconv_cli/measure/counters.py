"""Other people's counters, watching one forward pass: torch's dispatcher and thop.

Neither is told anything of the equations. The dispatcher sees the operators that run; thop sees modules, and its
rule for HetConv2d multiplies the weights that are really there by the output positions that really came out.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hetconv_cli.convert.trace import Call, Shape, forward_pass
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure.tally import Tally, add

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # thop asks distutils for torch's version
    import thop


@dataclass(frozen=True)
class Counts:
    """MACs by module, of one forward pass."""

    dispatcher: Tally
    thop: Tally


def count(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    """Both counters over ONE forward pass, so that both see the same calls; `model` is left as it was."""
    watched = copy.deepcopy(model)  # thop leaves buffers in what it profiles
    with forward_pass(watched), _every_product_visible(), FlopCounterMode(display=False) as flops:
        total, _, layers = thop.profile(
            watched, inputs=inputs, custom_ops={HetConv2d: _thop_rule}, verbose=False, ret_layer_info=True
        )
    return Counts(_exclusive(flops, model), _flatten(total, layers))


def count_dispatched(model: nn.Module, inputs: tuple[Any, ...]) -> Tally:
    """The dispatcher alone."""
    with forward_pass(model), _every_product_visible(), FlopCounterMode(display=False) as flops:
        model(*inputs)
    return _exclusive(flops, model)


def replay(module: nn.Module, calls: Iterable[Call], *, thop: bool = True) -> Counts:
    """Both counters over `module` (on the meta device), run once for each traced call on an input of that shape."""
    counts = Counts({}, {})
    seen: dict[Shape, Counts] = {}
    for call in calls:
        shape = call.inputs[0]
        if shape not in seen:
            inputs = (torch.empty(shape, device="meta"),)
            seen[shape] = count(module, inputs) if thop else Counts(count_dispatched(module, inputs), {})
        add(counts.dispatcher, seen[shape].dispatcher)
        add(counts.thop, seen[shape].thop)
    return counts


@contextlib.contextmanager
def _every_product_visible() -> Iterator[None]:
    """Fused attention reaches the dispatcher as one operator that it counts as nothing; take it apart."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _thop_rule(module: HetConv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Every weight multiplies once at every output position, as thop's own rule for Conv2d has it."""
    positions = output.numel() // output.shape[-3]
    weights = module.weight_1x1.numel() + module.weight_ring.numel()
    total: Tensor = module.total_ops  # type: ignore[assignment]  # a buffer that thop registers
    total += torch.DoubleTensor([positions * weights])


def _exclusive(flops: FlopCounterMode, model: nn.Module) -> Tally:
    """MACs (half the FLOPs) by module name without those of its children."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {module: name for name, module in model.named_modules()}
    root = type(model).__name__
    inclusive: Tally = {}
    for path, operators in flops.get_flop_counts().items():
        if path == root or path.startswith(f"{root}."):
            name = names[modules[path[len(root) + 1 :]]]
            inclusive[name] = sum(operators.values()) // 2
    tally = dict(inclusive)
    for name, macs in inclusive.items():
        parent = _nearest_ancestor(name, inclusive)
        if parent is not None:
            tally[parent] -= macs
    return {name: macs for name, macs in tally.items() if macs}


def _nearest_ancestor(name: str, known: Tally) -> str | None:
    while name:
        name = name.rpartition(".")[0]
        if name in known:
            return name
    return None


def _flatten(total: float, layers: dict[str, Any], prefix: str = "") -> Tally:
    """Unnests thop's answer, {child: (macs, parameters, {...})}, by full name; what no child has is the parent's."""
    tally: Tally = {}
    own = int(total)
    for name, (macs, _, inner) in layers.items():
        full = f"{prefix}.{name}" if prefix else name
        own -= int(macs)
        tally |= _flatten(macs, inner, full)
    if own:
        tally[prefix] = own
    return tally
