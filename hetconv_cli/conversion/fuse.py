"""BatchNorm and ReLU folded into the convolutions before them, for inference.

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
from hetconv_cli.layers.fused import fold_into_conv, fold_into_hetconv

ASSUMED_SIZE = 224  # of an image, where no example is given
CONVOLUTIONS = (HetConv2d, nn.Conv2d)
KEPT = "kept"  # no operation: what is still there after the pass
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Read:
    """One operation that reads a storage: its name, and the innermost module that was running."""

    operation: str
    module: nn.Module | None


def fuse(model: nn.Module, example: Any = None) -> nn.Module:
    """A copy of `model` for inference: HetConv + BatchNorm + ReLU in one layer wherever that is provably the same.

    The copy is in eval mode. Every HetConv2d becomes a FusedHetConv2d with its weights prepared for what runs it. A
    BatchNorm is folded into the HetConv2d or Conv2d before it. BatchNorm and ReLU modules that were folded become
    Identity; a ReLU that is called more than once stays, except in torchvision's BasicBlock, whose sum and second ReLU
    are folded as well. Works on every device; where the fused GPU kernel serves, a call is one launch.

    Args:
        model: Any network; it is left as it was.
        example: An input, or a tuple of inputs; without it a random image of 224 x 224 with the channels of
            the network's first convolution.

    Raises:
        HetconvError: the forward pass failed, or the model cannot be copied.
    """
    watched = _watched(model, example)
    new = _folded(watched)
    for conv in list(watched.watch.calls):
        if type(conv) is HetConv2d and conv in watched.plain:
            _fuse(conv, watched, new)
    new.update(_blocks(watched.model, new, watched.plain))
    return _replace(watched.model, new)


def fold_batchnorms(model: nn.Module, example: Any = None) -> nn.Module:
    """A copy of `model` in eval mode with every BatchNorm folded that follows a HetConv2d or Conv2d and nothing else.

    Arguments and errors as of `fuse`; layers keep their types.
    """
    watched = _watched(model, example)
    return _replace(watched.model, _folded(watched))


@dataclass(frozen=True)
class _Watched:
    """A copy of a model, one forward pass of it, and which of its modules do nothing besides their forward."""

    model: nn.Module
    watch: "_Watch"
    plain: set[nn.Module]


def _watched(model: nn.Module, example: Any) -> _Watched:
    try:
        own = copy.deepcopy(model)
    except Exception as error:
        raise HetconvError(f"the model cannot be copied ({error}); copy it before its first forward") from error
    inputs = _inputs(own, example)
    plain = {module for module in own.modules() if not _is_hooked(module)}
    watch = _Watch(own)
    with forward_pass(own), watch:
        watch.keep(own(*inputs), None)
    watch.keep([list(vars(module).values()) for module in own.modules()], None)
    return _Watched(own, watch, plain)


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
        self._note(KEPT, values, module)

    def readers(self, module: nn.Module) -> list[Read]:
        """Who read the output of `module`, in order, from when it was made."""
        made = _storage(self.output[module])
        return [read for storages, read in self.reads if made in storages]

    def alone_reads_its_weights(self, module: nn.Module) -> bool:
        """Whether nobody else read a parameter of `module` during the pass."""
        own = {_storage(parameter) for parameter in module.parameters(recurse=False)}
        return all(read.module is module or read.operation == KEPT for storages, read in self.reads if storages & own)

    def _note(self, operation: str, values: Any, module: nn.Module | None) -> None:
        storages = frozenset(_storage(value) for value in tree_leaves(values) if isinstance(value, Tensor))
        self.reads.append((storages, Read(operation, module)))

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        self.calls[module] += 1
        if isinstance(output, Tensor) and isinstance(module, (*CONVOLUTIONS, *NORMS)):
            self.output[module] = output
            made = _storage(output)  # what was read inside is no reader of the result
            self.reads = [(storages - {made}, read) for storages, read in self.reads]


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _folded(watched: _Watched) -> dict[nn.Module, nn.Module]:
    """What becomes of each convolution with a BatchNorm behind it, and of the BatchNorm."""
    new: dict[nn.Module, nn.Module] = {}
    for conv in watched.watch.calls:
        norm = _norm_behind(conv, watched)
        if norm is not None:
            new[conv] = _fold(conv, norm)
            new[norm] = nn.Identity()
    return new


def _fold(conv: Any, norm: Any) -> nn.Module:
    return fold_into_hetconv(conv, norm) if isinstance(conv, HetConv2d) else fold_into_conv(conv, norm)


def _norm_behind(conv: nn.Module, watched: _Watched) -> Any:
    watch, plain = watched.watch, watched.plain
    if type(conv) not in CONVOLUTIONS or conv not in plain or not watch.alone_reads_its_weights(conv):
        return None
    norm = _only_reader(conv, watch)
    if type(norm) not in NORMS or norm not in plain or not watch.alone_reads_its_weights(norm):
        return None
    return norm if norm.running_mean is not None else None


def _fuse(conv: HetConv2d, watched: _Watched, new: dict[nn.Module, nn.Module]) -> None:
    """Notes in `new` the fused layer that takes the place of `conv`, and of the ReLU that comes next."""
    relu = _first_reader(_norm_behind(conv, watched) or conv, watched.watch)
    if type(relu) is not nn.ReLU or relu not in watched.plain:
        relu = None
    folded = new.get(conv, conv)
    assert isinstance(folded, HetConv2d)
    new[conv] = FusedHetConv2d(folded, relu=relu is not None)
    if relu is not None:
        new[relu] = nn.Identity()


def _only_reader(module: nn.Module, watch: _Watch) -> nn.Module | None:
    """The module, called once like `module` itself, that alone reads the output of `module`."""
    once = watch.calls[module] == 1 and module in watch.output
    readers = {read.module for read in watch.readers(module)} if once else set()
    reader = readers.pop() if len(readers) == 1 else None
    return reader if reader is not None and watch.calls[reader] == 1 else None


def _first_reader(module: nn.Module, watch: _Watch) -> nn.Module | None:
    """The ReLU that alone reads the output of `module`, or changes it in place before anyone reads it."""
    reads = watch.readers(module) if watch.calls[module] == 1 and module in watch.output else []
    if reads and reads[0].operation == "aten::relu_":
        reader = reads[0].module
        return reader if reader is not None and watch.calls[reader] == 1 else None
    return _only_reader(module, watch)


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
        folded = all(isinstance(new.get(parts[name]), nn.Identity) for name in ("bn1", "bn2"))
        rectifies = type(parts["relu"]) is nn.ReLU and parts["relu"] in plain
        if isinstance(conv1, FusedHetConv2d) and isinstance(conv2, FusedHetConv2d) and folded and rectifies:
            conv1.relu = conv2.relu = True
            yield block, _FusedBasicBlock(conv1, conv2, parts.get("downsample"))


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """`model` with modules replaced wherever they stand, also where a parent holds one under several names."""
    for parent in list(model.modules()) + list(new.values()):
        for name, child in parent._modules.items():
            if child in new:
                setattr(parent, name, new[child])
    return new.get(model, model).eval()
