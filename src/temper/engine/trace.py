"""What a training stage will hold, from the real step on tensors without content.

Decisions:
- Nothing here knows a formula for a model's memory. The stage is put together as it will be (`fit.py`), on tensors
  that have shape, type and device and no content, and two of its optimizer steps run: their forward, backward and
  update are the loop's own functions. What they make and let go of is noted, one storage at a time.
- The first step makes the optimizer's state and the second meets it; micro-batches are the largest of the stage.
- On a CPU what counts is what the process holds: the allocator is asked for the same sequence (`heap.py`), and
  the conversions that PyTorch's kernels make inside of an operation on mixed types are added, since they never
  come to light as tensors. On a GPU PyTorch's own count of allocated bytes is what is predicted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.engine.heap import EDGES, VIEW, held_bytes
from temper.engine.layout import Whole, own
from temper.engine.loop import Loop
from temper.engine.precision import computing_in
from temper.models.recompute import recomputing

WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS = "weights", "gradients", "optimizer", "activations"
LOGITS, TEMPORARY, HELD = "logits", "temporary", "allocator"
CHECKPOINT = "checkpoint"
"""the copy that is written out while training goes on"""
KINDS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, TEMPORARY, HELD)
LIFE = "temper_life"
"""where a node of autograd's graph keeps what goes with it"""
GPU_ROUNDING = 512
"""bytes to whose multiple PyTorch rounds what it allocates on a GPU"""


@dataclass(frozen=True)
class Memory:
    """The peak of a traced training."""

    tensor_bytes: int
    """held by tensors at once, at most"""
    bytes: int
    """held by the process for them, at most: on a CPU with what the allocator keeps"""
    parts: dict[str, int]
    """where `bytes` goes at that moment, by kind"""

    def beside(self, kind: str, size: int) -> Memory:
        """Return this peak with something that is held all the while."""
        parts = {**self.parts, kind: self.parts.get(kind, 0) + size}
        return Memory(self.tensor_bytes + size, self.bytes + size, parts)


@dataclass
class _Storage:
    size: int
    kind: str = TEMPORARY


@contextmanager
def without_content() -> Iterator[FakeTensorMode]:
    """Make tensors without content, on the devices that are asked for; real ones lose theirs where they meet."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


class _Life:
    """Lies with a node of autograd's graph, and goes with it."""


class Ledger(TorchDispatchMode):
    """Notes every storage that operations make, and when it goes; also the small objects that come between them.

    Args:
        vocabulary: tensors whose last dimension is this count as logits.
        follows_sizes: look for storages that change their size, as those of gathered parameters do.
    """

    def __init__(self, vocabulary: int = 0, follows_sizes: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.follows_sizes = vocabulary, follows_sizes
        self.start = 0
        """the event from which the peak counts"""
        self.storages: list[_Storage] = []
        """also the objects, of negative size"""
        self.events: list[int] = []
        """number + 1 of a storage that comes, its negative where it goes; 0 where the heap gives back what lies free"""
        self._tensors = WeakIdKeyDictionary()
        """those that were seen"""
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # its own operations on what lies here follow
        if self.follows_sizes:
            self._follow_sizes()
        if func is torch.ops.aten._local_scalar_dense.default:
            # What a number is, nobody knows; methods ask for it to tell it in their metrics.
            return 1.0 if args[0].dtype.is_floating_point else 1
        inputs = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        for leaf in inputs:
            self._see_node(leaf.grad_fn)
        passing = _converted_bytes(func, inputs)
        number = self._come(passing) if passing else 0
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        if number:
            self.events.append(-number)
        return out

    def _come(self, size: int, kind: str = TEMPORARY) -> int:
        self.storages.append(_Storage(size, kind))
        self.events.append(len(self.storages))
        return len(self.storages)

    def _see(self, tensor: Tensor) -> None:
        is_known = tensor in self._tensors
        self._tensors[tensor] = None
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            if not is_known:
                self._object(tensor, VIEW)
            return
        is_logits = tensor.ndim >= 2 and self.vocabulary > 0 and tensor.shape[-1] == self.vocabulary
        # Inside of a backward pass there is a task of the autograd engine.
        in_backward = torch._C._current_graph_task_id() != -1
        kind = LOGITS if is_logits else TEMPORARY if in_backward or not torch.is_grad_enabled() else ACTIVATIONS
        number = self._come(_rounded(storage.nbytes(), tensor.device), kind)

        def gone(_: Any) -> None:
            self.events.append(-self._alive.pop(key)[1])

        self._alive[key] = (weakref.ref(storage, gone), number)

    def _see_node(self, node: Any) -> None:
        if node is not None and LIFE not in node.metadata:
            node.metadata[LIFE] = life = _Life()
            self._object(life, EDGES)

    def _object(self, owner: object, size: int) -> None:
        """Note an object that lives as long as its owner."""
        number = self._come(-size)
        weakref.finalize(owner, self.events.append, -number).atexit = False

    def _follow_sizes(self) -> None:
        """Note what was emptied, and what was filled again, since the last operation."""
        for key, (reference, number) in list(self._alive.items()):
            storage = reference()
            if storage is None:
                continue
            size = storage.nbytes()
            known = self.storages[number - 1]
            if size != known.size:
                self.events.append(-number)
                new = self._come(size, known.kind)
                self._alive[key] = (reference, new)

    def give_back(self) -> None:
        """Say that what lies free in the heap is given back to the system."""
        self.events.append(0)

    def call(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of tensors are."""
        for tensor in tensors:
            found = self._alive.get(id(own(tensor).untyped_storage()))
            if found is not None:
                self.storages[found[1] - 1].kind = kind

    def peak(self, on_cpu: bool) -> Memory:
        """Return the peak of what was noted."""
        by_process = held_bytes(self.events, [storage.size for storage in self.storages]) if on_cpu else None
        held = tensors = most = moment = 0
        for place, event in enumerate(self.events):
            held += self._grown_bytes(event)
            tensors = max(tensors, held)
            resident = held if by_process is None else max(held, by_process[place])
            if place < self.start:
                tensors = held
            elif resident > most:
                most, moment = resident, place
        parts = dict.fromkeys(KINDS, 0)
        for event in self.events[: moment + 1]:
            parts[self.storages[abs(event) - 1].kind] += self._grown_bytes(event)
        parts[HELD] = most - sum(parts.values())
        return Memory(tensors, most, parts)

    def _grown_bytes(self, event: int) -> int:
        """Return by how much tensors are more after an event."""
        if event == 0:
            return 0
        size = max(0, self.storages[abs(event) - 1].size)
        return size if event > 0 else -size


def _rounded(size: int, device: torch.device) -> int:
    return size if device.type == "cpu" else -(-size // GPU_ROUNDING) * GPU_ROUNDING


def _converted_bytes(func: Any, inputs: Sequence[Tensor]) -> int:
    """Return the bytes of the copies that a CPU kernel makes of inputs whose type is not the common one."""
    if torch.Tag.pointwise not in func.tags:
        return 0
    full = [tensor for tensor in inputs if tensor.ndim > 0 and tensor.device.type == "cpu"]
    types = {tensor.dtype for tensor in full}
    if len(types) < 2 or not all(dtype.is_floating_point for dtype in types) or "_to_copy" in str(func):
        return 0
    common = max(types, key=lambda dtype: dtype.itemsize)
    return sum(tensor.numel() * common.itemsize for tensor in full if tensor.dtype != common)


@dataclass
class Traced:
    """A loop on tensors without content."""

    loop: Loop
    ledger: Ledger
    mode: FakeTensorMode
    root: Whole | None = None
    """of a model that is divided among processes"""
    is_here: bool = True
    """whether it is this machine that will train"""

    def run(self, steps: Sequence[tuple[Sequence[Batch], float]]) -> Memory:
        """Run optimizer steps, each given as its micro-batches and units, and return the peak."""
        loop, ledger = self.loop, self.ledger
        module = loop.model.module
        trained = [parameter for _, parameter in loop.trained]
        ledger.call(WEIGHTS, chain(module.parameters(), module.buffers(), trained))
        module.train()
        with self.mode, ledger, recomputing(loop.model, loop.recompute):
            for number, (batches, units) in enumerate(steps):
                self._step(Moment(number, 0.0), batches, units, trained)
        return ledger.peak(loop.device.type == "cpu" and self.is_here)

    def _add_gradients(self, batch: Batch, units: float, moment: Moment) -> None:
        loop = self.loop
        if self.root is None:
            loop.add_gradients(batch, units, moment)
            return
        with computing_in(loop.dtype, loop.device):
            total = self.root(lambda: loop.target.loss(batch, moment).total)
        (total / units).backward()

    def _clip_gradients(self, trained: Sequence[Tensor]) -> None:
        if self.root is None:
            self.loop.clip_gradients()
            return
        # Gradients that lie on different meshes have no norm together: each process adds up its own.
        gradients = [own(one.grad) for one in trained if one.grad is not None]
        norm = sum((one.double().square().sum() for one in gradients), torch.zeros(())).sqrt()
        for one in gradients:
            one.mul_(norm)

    @torch.no_grad()
    def _evaluate(self, batches: Sequence[Batch], units: float, moment: Moment) -> float:
        """Compute a step's loss, which has no content and is told as 0."""
        for batch in batches:
            self.loop.add_gradients(batch, units, moment)
        self.loop.add_penalty(moment)
        return 0.0

    def _step(self, moment: Moment, batches: Sequence[Batch], units: float, trained: Sequence[Tensor]) -> None:
        loop, ledger = self.loop, self.ledger
        for live in loop.lives:
            live.before_step(moment)
        if self.root is None:
            loop.look_at(batches, moment)
        if loop.optim.needs_gradient:
            for batch in batches:
                self._add_gradients(batch, units, moment)
                ledger.call(GRADIENTS, (one.grad for one in trained if one.grad is not None))
            if self.root is None:
                if loop.sums is not None and loop.sums.gives_back:
                    ledger.give_back()
                loop.finish_gradients()
            loop.add_penalty(moment)
            self._clip_gradients(trained)
            ledger.call(GRADIENTS, (one.grad for one in trained if one.grad is not None))
            loop.update()
        else:
            loop.optimizer.step(lambda: self._evaluate(batches, units, moment))
        states = loop.optimizer.state.values()
        ledger.call(OPTIMIZER, (value for state in states for value in state.values() if isinstance(value, Tensor)))
        for live in loop.lives:
            live.after_step(moment)
