"""The original and the converted network, side by side: what a module reads and gives in both, chunk by chunk.

Ways to the same numbers. `Rerun` starts both networks afresh for every module and stops behind it: it holds one
chunk's activations and costs, for L modules, about L/2 forward passes of each. `Lockstep` holds every chunk's forward
pass still at one module (each in a thread of its own, one running at a time), so that a whole calibration is ONE
forward pass of each network: it holds what is alive there, of all images, in memory. `Partly` takes the first for as
many chunks as the memory holds and the second for the others.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hetconv_cli.conversion.calibration.samples import Chunk

Chunks = tuple[Chunk, ...]
_Hooks = list[torch.utils.hooks.RemovableHandle]


@dataclass(frozen=True)
class Pair:
    """One call of a module for one chunk: what the converted network's reads, what the original's reads and gives."""

    chunk: Chunk
    call: int
    converted_input: Tensor
    original_input: Tensor
    original_output: Tensor


class OutOfStepError(Exception):
    """The two networks do not reach the same modules in the same order."""


class _StopError(BaseException):  # not an Exception: no model's own handler may catch it
    """Ends a forward pass that has shown what was wanted."""


def tensor_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor that a module is called with."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


class Rerun:
    """Pairs of a module by fresh forward passes, stopped after `calls[name]` calls of it."""

    def __init__(self, original: nn.Module, converted: nn.Module, chunks: Chunks, calls: dict[str, int]) -> None:
        self._models, self._chunks, self._calls = (original, converted), chunks, calls

    def pairs(self, name: str) -> Iterator[Pair]:
        """Every call of the module `name`, chunk by chunk. Calls of different shapes (other boxes) are left out."""
        for chunk in self._chunks:
            ours = self._watch(self._models[1], name, chunk, outputs=False)
            theirs = self._watch(self._models[0], name, chunk, outputs=True)
            for call, ((mine, _), (read, gave)) in enumerate(zip(ours, theirs, strict=False)):
                if mine.shape == read.shape and gave is not None:
                    yield Pair(chunk, call, mine, read, gave)

    def close(self) -> None:
        """Nothing is held."""

    def _watch(self, model: nn.Module, name: str, chunk: Chunk, *, outputs: bool) -> list[tuple[Tensor, Tensor | None]]:
        seen: list[tuple[Tensor, Tensor | None]] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not outputs:
                seen.append((tensor_in(args, kwargs).clone(), None))  # what follows may write into it
                if len(seen) >= self._calls[name]:
                    raise _StopError

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if outputs:
                seen.append((tensor_in(args, kwargs).clone(), output.clone()))
                if len(seen) >= self._calls[name]:
                    raise _StopError

        module = model.get_submodule(name)
        hooks = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            with torch.no_grad(), contextlib.suppress(_StopError):
                model(*chunk.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


class Lockstep:
    """Pairs of modules in the order in which they are first called, each once, by one forward pass of each network.

    Args:
        original: In eval mode, as `converted`.
        converted: May be changed between two calls of `pairs`.
        chunks: The images.
        names: The modules, in the order of their first calls.
        calls: How often each is called. What is called more than once is left to `Rerun`: its weights must be known
            before its first call is passed, and its last one be seen before they are.
    """

    def __init__(
        self,
        original: nn.Module,
        converted: nn.Module,
        chunks: Chunks,
        names: list[str],
        calls: dict[str, int],
    ) -> None:
        self._rerun = Rerun(original, converted, chunks, calls)
        self._chunks, self._calls = chunks, calls
        self._running = _Running()
        self._hooks: _Hooks = []
        for model in (original, converted):
            for name in names:
                self._hooks += self._running.watch(model.get_submodule(name), name)
        self._original = [_Forward(original, chunk, self._running) for chunk in chunks]
        self._converted = [_Forward(converted, chunk, self._running) for chunk in chunks]

    def pairs(self, name: str) -> Iterator[Pair]:
        """The calls of the module `name`, the next in order.

        Raises:
            OutOfStepError: a network reaches another module next.
        """
        for forward in self._converted:
            forward.reach(name)
        if self._calls[name] > 1:
            with self._running.suspended():
                yield from self._rerun.pairs(name)
            for forward in self._original:
                forward.reach(name)
            return
        for chunk, ours, theirs in zip(self._chunks, self._converted, self._original, strict=True):
            theirs.reach(name)
            read, mine = theirs.reads, ours.reads
            if read is None or mine is None or read.shape != mine.shape:
                raise OutOfStepError(f"{name}: the networks read different shapes")
            read = read.clone()  # what follows may write into it
            output = theirs.advance()
            yield Pair(chunk, 0, mine, read, output)

    def close(self) -> None:
        """Ends every forward pass that is held still, and takes the hooks away."""
        for forward in (*self._original, *self._converted):
            forward.abandon()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class Partly:
    """Lockstep for some chunks, then fresh forward passes for the others; the pairs come in the order of the chunks."""

    def __init__(self, lockstep: Lockstep, rerun: Rerun) -> None:
        self._lockstep, self._rerun = lockstep, rerun

    def pairs(self, name: str) -> Iterator[Pair]:
        """As of Lockstep."""
        yield from self._lockstep.pairs(name)
        yield from self._rerun.pairs(name)

    def close(self) -> None:
        """Ends what is held still."""
        self._lockstep.close()


class _Running:
    """Which forward pass runs now: the modules' hooks speak to that one."""

    def __init__(self) -> None:
        self.forward: _Forward | None = None

    def watch(self, module: nn.Module, name: str) -> _Hooks:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.forward is not None:
                self.forward.arrive(name, tensor_in(args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.forward is not None:
                self.forward.leave(name, output)

        return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        forward, self.forward = self.forward, None
        try:
            yield
        finally:
            self.forward = forward


class _Forward:
    """A forward pass in a thread of its own that stands still before the first call of each watched module."""

    def __init__(self, model: nn.Module, chunk: Chunk, running: _Running) -> None:
        self._model, self._chunk, self._running = model, chunk, running
        self._go, self._still = threading.Semaphore(0), threading.Semaphore(0)
        self._seen: set[str] = set()
        self._wanted_output: str | None = None
        self._output: Tensor | None = None
        self._error: BaseException | None = None
        self._abandoned = self._done = False
        self.at: str | None = None
        self.reads: Tensor | None = None
        self._thread: threading.Thread | None = None

    def reach(self, name: str) -> None:
        """Runs on to the first call of `name`, which must be the next watched one; there already: does nothing."""
        if self.at != name or name not in self._seen:
            self._run()
        if self.at != name:
            raise OutOfStepError(f"expected the network to call {name} next, got {self.at or 'its end'}")

    def advance(self) -> Tensor:
        """Runs on from a standstill to the next one, and returns the output of the module passed on the way."""
        self._wanted_output = self.at
        self._run()
        output, self._output = self._output, None
        if output is None:
            raise OutOfStepError("a module gave no output")
        return output

    def abandon(self) -> None:
        """Ends the forward pass where it stands."""
        if self._thread is not None and not self._done:
            self._abandoned = True
            self._go.release()
            self._thread.join()

    def arrive(self, name: str, input: Tensor) -> None:
        """From the hook: stands still, if this is the module's first call."""
        if name in self._seen:
            return
        self._seen.add(name)
        self.at, self.reads = name, input
        self._still.release()
        self._go.acquire()
        self.reads = None
        if self._abandoned:
            raise _StopError

    def leave(self, name: str, output: Tensor) -> None:
        """From the hook: keeps the output that is waited for."""
        if name == self._wanted_output:
            self._wanted_output, self._output = None, output.clone()  # what follows may write into it

    def _run(self) -> None:
        if self._done:
            self.at = None
            return
        self._running.forward = self
        if self._thread is None:
            self._thread = threading.Thread(target=self._forward, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._still.acquire()
        self._running.forward = None
        if self._error is not None:
            raise self._error

    def _forward(self) -> None:
        try:
            with torch.no_grad():  # of this thread
                self._model(*self._chunk.inputs)
        except _StopError:
            pass
        except BaseException as error:
            self._error = error
        self._done, self.at, self.reads = True, None, None
        self._still.release()


# --- memory -------------------------------------------------------------------------------------------------------


def held_bytes(model: nn.Module, inputs: tuple[Any, ...], names: list[str]) -> int:
    """The most memory that one forward pass of `model` holds before a call of any of the modules `names`.

    Counts what its operators made and somebody still holds there, not the inputs and the weights.
    """
    held = _Held()
    most = 0

    def before(module: nn.Module, args: Any) -> None:
        nonlocal most
        most = max(most, held.bytes())

    hooks = [model.get_submodule(name).register_forward_pre_hook(before) for name in names]
    try:
        with torch.no_grad(), held:
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return most


def chunks_within(memory: int, chunks: Chunks, first: int) -> tuple[int, int]:
    """How many of the chunks, from the first on, can be held in both networks, and the bytes that they hold.

    Args:
        memory: Bytes that may be held.
        chunks: The images.
        first: Bytes that one network holds for the first chunk. Others are taken to hold as much for a number of input.
    """
    count = total = 0
    for chunk in chunks:
        holds = 2 * math.ceil(first * _numbers(chunk) / _numbers(chunks[0]))
        if total + holds > memory:
            break
        count, total = count + 1, total + holds
    return count, total


def _numbers(chunk: Chunk) -> int:
    return max(1, sum(leaf.numel() for leaf in _pytree.tree_leaves(chunk.inputs) if isinstance(leaf, Tensor)))


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows of every storage that operators make while it watches, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, tuple[Callable[[], bool], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (_weakly(storage), storage.nbytes())
        return output

    def bytes(self) -> int:
        self._storages = {key: value for key, value in self._storages.items() if not value[0]()}
        return sum(size for _, size in self._storages.values())


def _weakly(storage: torch.UntypedStorage) -> Callable[[], bool]:
    """Tells whether the storage is gone, without keeping it."""
    expired: Callable[[], bool] = StorageWeakRef(storage).expired  # type: ignore[no-untyped-call]
    return expired
