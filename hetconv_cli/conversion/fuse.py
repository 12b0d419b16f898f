"""BatchNorm and ReLU folded into the HetConv layers before them, for inference.

Which tensor is read where is watched during one forward pass, storage by storage: a BatchNorm is folded only where it
is the one reader of a HetConv's output, a ReLU only where it is the first to see what the BatchNorm made. What a
forward does outside of torch's dispatcher (`tensor.numpy()`, a tensor kept in a closure) is not seen.
"""

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hetconv_cli.conversion.trace import forward_pass
from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import FusedHetConv2d, HetConv2d

ASSUMED_SIZE = 224  # of an image, where no example is given
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Read:
    """One operation that reads a storage: its name, and the innermost module that was running."""

    operation: str
    module: nn.Module | None


def fuse(model: nn.Module, example: Any = None) -> nn.Module:
    """A copy of `model` for inference: HetConv + BatchNorm + ReLU in one layer wherever that is provably the same.

    The copy is in eval mode. BatchNorm and ReLU modules that were folded become Identity; a ReLU that is called more
    than once stays, except in torchvision's BasicBlock, whose sum and second ReLU are folded as well. A HetConv with
    no BatchNorm behind it is left as it is. Works on every device; where the fused GPU kernel serves, a call is one
    launch.

    Args:
        model: Any network with HetConv2d layers; it is left as it was.
        example: An input, or a tuple of inputs; without it a random image of 224 x 224 with the channels of
            the network's first convolution.

    Raises:
        HetconvError: the forward pass failed, or the model cannot be copied.
    """
    try:
        fused = copy.deepcopy(model)
    except Exception as error:
        raise HetconvError(f"the model cannot be copied ({error}); copy it before its first forward") from error
    inputs = _inputs(fused, example)
    plain = {module for module in fused.modules() if not _is_hooked(module)}
    watch = _Watch(fused)
    with forward_pass(fused), watch:
        watch.keep(fused(*inputs), None)
    watch.keep([list(vars(module).values()) for module in fused.modules()], None)
    new: dict[nn.Module, nn.Module] = {}
    for conv in watch.calls:
        if type(conv) is HetConv2d and conv in plain:
            _fold(conv, watch, plain, new)
    new.update(_blocks(fused, new, plain))
    result = _replace(fused.eval(), new)
    for module in result.modules():
        if isinstance(module, FusedHetConv2d):
            module.prepare()
    return result


def _inputs(model: nn.Module, example: Any) -> tuple[Any, ...]:
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d | HetConv2d)), None)
    if first is None:
        return (torch.randn(1, 3, ASSUMED_SIZE, ASSUMED_SIZE),)
    weight = next(first.parameters())
    channels = first.in_channels
    return (torch.randn(1, channels, ASSUMED_SIZE, ASSUMED_SIZE, device=weight.device, dtype=weight.dtype),)


class _Watch(TorchDispatchMode):
    """Which storages the outputs of modules have, and every operation that reads one of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[nn.Module] = Counter()
        self.output: dict[nn.Module, Tensor] = {}  # kept alive, so that a storage's address is its name
        self.reads: list[tuple[frozenset[int], Read]] = []
        self._running: list[nn.Module] = []
        self._model = model

    def __enter__(self) -> "_Watch":
        modules = list(self._model.modules())
        self._handles = [module.register_forward_pre_hook(self._begin) for module in modules]
        self._handles += [module.register_forward_hook(self._end) for module in modules]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note(func.name(), (args, kwargs), self._running[-1] if self._running else None)
        return func(*args, **(kwargs or {}))

    def keep(self, values: Any, module: nn.Module | None) -> None:
        """Notes that `values`, any structure of tensors, are still there after the pass."""
        self._note("kept", values, module)

    def readers(self, module: nn.Module) -> list[Read]:
        """Who read the output of `module`, in order, from when it was made."""
        made = _storage(self.output[module])
        return [read for storages, read in self.reads if made in storages]

    def _note(self, operation: str, values: Any, module: nn.Module | None) -> None:
        storages = frozenset(_storage(value) for value in tree_leaves(values) if isinstance(value, Tensor))
        self.reads.append((storages, Read(operation, module)))

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        self.calls[module] += 1
        if isinstance(output, Tensor) and isinstance(module, (HetConv2d, *NORMS)):
            self.output[module] = output
            made = _storage(output)  # what was read inside is no reader of the result
            self.reads = [(storages - {made}, read) for storages, read in self.reads]


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _fold(conv: HetConv2d, watch: _Watch, plain: set[nn.Module], new: dict[nn.Module, nn.Module]) -> None:
    """Notes in `new` what becomes of `conv` and of the BatchNorm and ReLU that can be folded into it."""
    norm = _only_reader(conv, watch)
    if not isinstance(norm, NORMS) or type(norm) not in NORMS or norm not in plain or norm.running_mean is None:
        return
    relu = _first_reader(norm, watch)
    if type(relu) is not nn.ReLU or relu not in plain:
        relu = None
    new[conv] = FusedHetConv2d(conv, norm, relu=relu is not None)
    new[norm] = nn.Identity()
    if relu is not None:
        new[relu] = nn.Identity()


def _only_reader(module: nn.Module, watch: _Watch) -> nn.Module | None:
    """The module, called once like `module` itself, that alone reads the output of `module`."""
    once = watch.calls[module] == 1 and module in watch.output
    readers = {read.module for read in watch.readers(module)} if once else set()
    reader = readers.pop() if len(readers) == 1 else None
    return reader if reader is not None and watch.calls[reader] == 1 else None


def _first_reader(norm: nn.Module, watch: _Watch) -> nn.Module | None:
    """The ReLU that alone reads the output of `norm`, or changes it in place before anyone reads it."""
    reads = watch.readers(norm)
    if reads and reads[0].operation == "aten::relu_":
        reader = reads[0].module
        return reader if reader is not None and watch.calls[reader] == 1 else None
    return _only_reader(norm, watch)


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or parametrize.is_parametrized(module)


class _FusedBasicBlock(nn.Module):
    """A BasicBlock of torchvision with its sum and both ReLUs in the convolutions."""

    def __init__(self, conv1: FusedHetConv2d, conv2: FusedHetConv2d, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.conv2, self.downsample = conv1, conv2, downsample

    def forward(self, x: Tensor) -> Tensor:
        """relu(conv2(relu(conv1(x))) + x), x downsampled where the block does that."""
        identity = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.conv2(self.conv1(x), identity)
        return output


def _blocks(
    model: nn.Module, new: dict[nn.Module, nn.Module], plain: set[nn.Module]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The BasicBlocks of torchvision of which both convolutions are folded, and what takes their place."""
    block_type = getattr(sys.modules.get("torchvision.models.resnet"), "BasicBlock", None)
    for block in model.modules():
        if block_type is None or type(block) is not block_type or block not in plain:
            continue
        parts: dict[str, Any] = block._modules
        conv1, conv2 = (new.get(parts[name]) for name in ("conv1", "conv2"))
        rectifies = type(parts["relu"]) is nn.ReLU and parts["relu"] in plain
        if isinstance(conv1, FusedHetConv2d) and isinstance(conv2, FusedHetConv2d) and rectifies:
            conv1.relu = conv2.relu = True
            yield block, _FusedBasicBlock(conv1, conv2, parts.get("downsample"))


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """`model` with modules replaced wherever they stand, also where a parent holds one under several names."""
    for parent in list(model.modules()) + list(new.values()):
        for name, child in parent._modules.items():
            if child in new:
                setattr(parent, name, new[child])
    return new.get(model, model).eval()
