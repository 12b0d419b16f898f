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
from torch.utils.hooks import RemovableHandle

from hetconv_cli.conversion.trace import Call, Shape, forward_pass
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure.tally import Tally, add


@dataclass(frozen=True)
class Counts:
    """MACs by module, of one forward pass."""

    dispatcher: Tally
    thop: Tally


def count(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    """Both counters over ONE forward pass, so that both see the same calls; `model` is left as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # thop asks distutils for torch's version
        import thop  # here, so that everything that needs the dispatcher only works without it

    watched = copy.deepcopy(model)  # thop leaves buffers in what it profiles
    with forward_pass(watched), _every_product_visible(), _Dispatched(watched) as dispatched:
        total, _, layers = thop.profile(
            watched, inputs=inputs, custom_ops={HetConv2d: _thop_rule}, verbose=False, ret_layer_info=True
        )
    return Counts(dispatched.tally, _flatten(total, layers))


def count_dispatched(model: nn.Module, inputs: tuple[Any, ...]) -> Tally:
    """The dispatcher alone."""
    with forward_pass(model), _every_product_visible(), _Dispatched(model) as dispatched:
        model(*inputs)
    return dispatched.tally


class _Dispatched:
    """torch's FlopCounterMode, with what it counts written down for the module that is running, its children apart.

    Its own account by module adds children to parents, and a module that several parents share to one of them only.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tally: Tally = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._mode = FlopCounterMode(display=False)
        self._counted = 0

    def __enter__(self) -> "_Dispatched":
        self._handles = [hook for module in self._names for hook in self._hooks(module)]
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        self._mode.__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _hooks(self, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        def enter(module: nn.Module, args: object) -> None:
            self._settle()
            self._running.append(module)

        def leave(module: nn.Module, args: object, output: object) -> None:
            self._settle()
            self._running.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)

    def _settle(self) -> None:
        """What came up since the last change of module was done by the innermost one that is running."""
        total = sum(self._mode.flop_counts["Global"].values())
        new, self._counted = (total - self._counted) // 2, total
        if new:
            name = self._names[self._running[-1]] if self._running else ""
            self.tally[name] = self.tally.get(name, 0) + new


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
