"""Depthwise + pointwise pairs that can be taken as ONE convolution, found by watching a forward pass.

A pair is a depthwise convolution whose output reaches a 1 x 1 convolution and nothing else, through BatchNorm and
element-wise activations only. Every value of the pass is followed from the function that made it to those that read
it, so nothing is guessed from the order in which modules are declared.
"""

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from hetconv_cli.convert.candidates import HOOKS, geometry_of, obstacle, owners_of
from hetconv_cli.convert.trace import forward_pass
from hetconv_cli.geometry import Geometry
from hetconv_cli.plan import Candidate, Pair

# What may stand between: each is one function of one value, and keeps channels apart.
BETWEEN = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
)
_VALUE = "_hetconv_value"  # on a tensor: the number of the value that it holds; writing in place changes the number
_NUMBERS = itertools.count(1)  # never used twice: a tensor may outlive the pass that numbered it
_FACTS = {"size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "is_complex", "data_ptr", "__len__"}


def with_pairs(candidates: list[Candidate], model: nn.Module, inputs: tuple[Any, ...]) -> list[Candidate]:
    """The candidates, with the pair that each depthwise convolution begins, or the reason why it begins none.

    Raises:
        HetconvError: the model does not run on `inputs`.
    """
    found = find_pairs(model, inputs)
    result = []
    for candidate in candidates:
        pair = found.get(candidate.name)
        if isinstance(pair, Pair):
            result.append(replace(candidate, pair=pair))
        else:
            result.append(replace(candidate, no_pair=pair))
    return result


def find_pairs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Pair | str]:
    """For each depthwise Conv2d, by name: its pair, or why it has none. `model` is left as it was.

    Raises:
        HetconvError: the model does not run on `inputs`.
    """
    names = {module: name for name, module in model.named_modules()}
    depthwise = [module for module in names if isinstance(module, nn.Conv2d) and _is_depthwise(module)]
    if not depthwise:
        return {}
    with forward_pass(model), _Flow(model) as flow:
        flow.end(model(*inputs))
    search = _Search(dict(model.named_modules()), owners_of(model), flow)
    return {names[conv]: search.pair_of(names[conv], conv) for conv in depthwise}


def pair_geometry(depthwise: Geometry, pointwise: Geometry) -> Geometry:
    """Of the one convolution M -> N that takes the place of both: the depthwise one's window and stride."""
    return replace(depthwise, out_channels=pointwise.out_channels, groups=1, bias=pointwise.bias)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1


# --- values and their readers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """One function that ran: its name, the modules it ran in (outermost first), the values it wrote."""

    function: str
    modules: tuple[str, ...]
    writes: tuple[int, ...]


class _Flow(TorchFunctionMode):
    """Follows values through a forward pass: which function, in which module, reads and writes which."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.readers: dict[int, list[_Step]] = defaultdict(list)
        self.outputs: dict[str, int] = {}  # of each module's last call
        self.calls: Counter[str] = Counter()
        self._model = model
        self._stack: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "_Flow":
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            self._handles.append(module.register_forward_pre_hook(self._entering(name)))
            self._handles.append(module.register_forward_hook(self._leaving(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def end(self, output: Any) -> None:
        """The network's output reads what is in it."""
        step = _Step("the network's output", (), ())
        for value in _values_in(output):
            self.readers[value].append(step)

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self.calls[name] += 1
            self._stack.append(name)

        return enter

    def _leaving(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()
            for value in _values_in(output)[:1]:
                self.outputs[name] = value

        return leave

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read = _values_in((args, kwargs))  # before a function that writes in place gives its input a new number
        output = func(*args, **(kwargs or {}))
        results = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", "a function")
        if not results and (name == "__get__" or name in _FACTS):
            return output  # a shape, a type: the value itself was not looked at
        for tensor in results:
            setattr(tensor, _VALUE, next(_NUMBERS))
        step = _Step(name, tuple(self._stack), tuple(_values_in(results)))
        for value in dict.fromkeys(read):
            self.readers[value].append(step)
        return output


def _values_in(structure: Any) -> list[int]:
    leaves = (leaf for leaf in _pytree.tree_leaves(structure) if isinstance(leaf, Tensor))
    return [value for leaf in leaves if (value := getattr(leaf, _VALUE, None)) is not None]


# --- from a depthwise convolution to its pointwise one --------------------------------------------------------------


class _NoPair(Exception):
    """Why a depthwise convolution begins no pair."""


@dataclass(frozen=True)
class _Search:
    modules: dict[str, nn.Module]
    owners: Counter[int]
    flow: _Flow

    def pair_of(self, name: str, conv: nn.Conv2d) -> Pair | str:
        """The pair that begins here, or why there is none."""
        try:
            self._check_convolution(name, conv)
            if conv.out_channels != conv.in_channels:
                raise _NoPair(f"{conv.out_channels // conv.in_channels} filters a channel")
            return self._follow(name, conv)
        except _NoPair as reason:
            return str(reason)

    def _follow(self, name: str, conv: nn.Conv2d) -> Pair:
        """From one value to the next, as long as each is read in one place only."""
        between: list[str] = []
        value = self.flow.outputs.get(name)
        while value is not None:
            step = self._only_reader(value, name)
            follower = step.modules[-1]
            module = self.modules[follower]
            if isinstance(module, nn.Conv2d):
                self._check_pointwise(follower, module)
                return Pair(pair_geometry(geometry_of(conv), geometry_of(module)), (*between, follower))
            self._check_between(step, module)
            between.append(follower)
            value = step.writes[0]
        raise _NoPair("its output is no tensor")

    def _only_reader(self, value: int, depthwise: str) -> _Step:
        steps = self.flow.readers.get(value, [])
        if not steps:
            raise _NoPair("nothing reads its output")
        if len(steps) > 1:
            around = [part for part in steps[0].modules if all(part in step.modules for step in steps)]
            if around and not _is_inside(depthwise, around[-1]):  # a squeeze-and-excitation, say
                raise _NoPair(f"{type(self.modules[around[-1]]).__name__} stands between")
            raise _NoPair(f"its output is read in {len(steps)} places")
        if not steps[0].modules:
            raise _NoPair(f"{steps[0].function} reads its output")
        return steps[0]

    def _check_convolution(self, name: str, conv: nn.Conv2d) -> None:
        calls = self.flow.calls[name]
        if calls != 1:
            raise _NoPair("never ran" if calls == 0 else f"{name} is called {calls} times")
        problem = obstacle(conv, self.owners)
        if problem:
            raise _NoPair(f"{name}: {problem}")

    def _check_pointwise(self, name: str, conv: nn.Conv2d) -> None:
        g = geometry_of(conv)
        if g.taps != 1 or g.groups != 1:
            groups = f" in {g.groups} groups" if g.groups > 1 else ""
            raise _NoPair(f"a {g.kernel[0]}x{g.kernel[1]} convolution{groups} follows")
        if g.stride != (1, 1) or g.padding != (0, 0):
            raise _NoPair("the pointwise convolution has a stride or a padding")
        self._check_convolution(name, conv)

    def _check_between(self, step: _Step, module: nn.Module) -> None:
        name = step.modules[-1]
        if type(module) not in BETWEEN:
            is_leaf = next(module.children(), None) is None
            what = type(module).__name__ if is_leaf else f"{step.function} (a function, not a module)"
            raise _NoPair(f"{what} stands between")
        if self.flow.calls[name] != 1:
            raise _NoPair(f"{name}, which stands between, is called {self.flow.calls[name]} times")
        if any(getattr(module, hooks) for hooks in HOOKS):
            raise _NoPair(f"{name}, which stands between, has hooks")


def _is_inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")
