"""The processes of a run: one, or as many as `torchrun` started.

Decisions:
- A `World` of one process is the same object whose operations do nothing, so that the loop reads the same for both.
- What processes tell one another besides gradients goes through a group of its own, on the CPU: it may wait for
  hours (the others wait while the first one measures) and never meets what a GPU has in flight.
- Nothing ends by a time-out. Each process holds a connection to the next one in a ring; the system closes it when
  that process ends, however it ends, and whoever waits for it ends too. So a death goes round in milliseconds a
  process, and a pause of minutes is none.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from temper.core.errors import TemperError, TrainingError
from temper.engine.layout import DIMENSIONS, Layout

NO_TIME_OUT = timedelta(days=30)
SECONDS_TO_NOTICE = 2.0
"""How long an error waits for the news that another process has ended, which would be its cause."""
SECONDS_FOR_MAIN = 5.0
"""How long the main process has for telling an error that came to all of them."""
SECONDS_TO_END = 10.0
"""How long a process has for ending by itself after another one has, before it is ended where it stands."""
LEFT = (
    "another process of this run has ended (what it said stands above); started again, the run goes on from its "
    "last checkpoint"
)

T = TypeVar("T")


@dataclass
class World:
    """The processes that train together, seen from one of them.

    `World()` is one process; `World.join` joins those of `torchrun`. As a context it says what went wrong and leaves.
    """

    rank: int = 0
    size: int = 1
    layout: Layout = field(default_factory=Layout)
    mesh: DeviceMesh | None = None
    """all processes by `DIMENSIONS`; None for one process"""
    talk: Any = None
    """the group through which the processes talk; None for one process"""
    writers: Any = None
    """the group of the threads that write checkpoints while the processes train"""
    ring: Ring | None = None
    is_made_here: bool = False

    @staticmethod
    def join(layout: Layout | None = None) -> World:
        """Join the processes that `torchrun` started; one process where it did not.

        Args:
            layout: how the processes divide the work; all for `fsdp` where it is not given.

        Raises:
            SettingError: a layout that does not fit the number of processes.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))  # how torchrun tells its processes who they are
        sizes = (layout or Layout()).sizes(size)
        if size == 1:
            return World()
        is_made_here = not dist.is_initialized()
        on_gpu = torch.cuda.is_available()
        if is_made_here:
            if on_gpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        rank = dist.get_rank()
        return World(
            rank,
            size,
            Layout(dp=sizes[0], fsdp=sizes[1], tp=sizes[2]),
            init_device_mesh("cuda" if on_gpu else "cpu", sizes, mesh_dim_names=DIMENSIONS),
            dist.new_group(backend="gloo", timeout=NO_TIME_OUT),
            dist.new_group(backend="gloo", timeout=NO_TIME_OUT),
            Ring(rank, size, dist.new_group(backend="gloo", timeout=NO_TIME_OUT)),
            is_made_here,
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, prints and decides."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of each batch this process computes; those that divide a matrix have one share together."""
        return self.rank // self.layout.tp

    @property
    def data_size(self) -> int:
        """How many shares each batch has."""
        return self.size // self.layout.tp

    def gather(self, value: T) -> list[T]:
        """Return what every process gave, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.talk)
        return gathered

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Add up numbers by name over the shares of the batch, in the same order on every process."""
        if self.size == 1:
            return dict(values)
        total: dict[str, float] = {}
        for given in self.gather(dict(values))[:: self.layout.tp]:
            for name, value in given.items():
                total[name] = total.get(name, 0) + value
        return total

    def broadcast(self, value: T) -> T:
        """Return what the main process gave."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.talk)
        return box[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do something first (and keep it where all find it), then the others."""
        if not self.is_main:
            self.gather(None)
        yield
        if self.is_main:
            self.gather(None)

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the shares of the batch, in place, on the tensor's device."""
        if self.mesh is not None:
            for dimension in ("fsdp", "dp"):
                if self.mesh[dimension].size() > 1:
                    dist.all_reduce(tensor, group=self.mesh[dimension].get_group())

    @contextmanager
    def naming_a_death(self) -> Iterator[None]:
        """Say of an error that came from another process' end that it did.

        Raises:
            TrainingError: another process has ended.
        """
        try:
            yield
        except TemperError:
            raise
        except Exception as error:
            if self.ring is not None and self.ring.is_broken.wait(SECONDS_TO_NOTICE):
                raise TrainingError(LEFT) from error
            raise

    def __enter__(self) -> World:
        if self.ring is not None:
            self.ring.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ring is None:
            return
        if error is None:
            self.gather(None)
            self.ring.close()
            if self.is_made_here:
                dist.destroy_process_group()
        elif isinstance(error, Exception) and not self.is_main:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Say what ended this process, unless it was the end of another one, and end.

        What a user can mend ends all processes at the same step, and the main one tells it: it is waited for.
        """
        assert self.ring is not None
        wait = SECONDS_FOR_MAIN if isinstance(error, TemperError) else SECONDS_TO_NOTICE
        if not self.ring.is_broken.wait(wait):
            print(f"process {self.rank} of {self.size} failed:", file=sys.stderr)
            traceback.print_exception(error, file=sys.stderr)
            sys.stderr.flush()
        os._exit(1)  # whoever waits for this process is told by the system, now


class Ring:
    """One open connection from each process to the one before it, which breaks when the process ends."""

    def __init__(self, rank: int, size: int, group: Any) -> None:
        self.next, self.before, self.group = (rank + 1) % size, (rank - 1) % size, group
        self.is_broken = threading.Event()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="temper-ring", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Say farewell, and wait for that of the next one."""
        self._is_closed.set()
        dist.send(torch.zeros(1), dst=self.before, group=self.group)
        self._thread.join()

    def _listen(self) -> None:
        try:
            dist.recv(torch.zeros(1), src=self.next, group=self.group)
        except RuntimeError:
            self.is_broken.set()
            # Whoever waits for the dead on a GPU is told nothing, and would wait on.
            if not self._is_closed.wait(SECONDS_TO_END):
                print(f"temper: {LEFT}", file=sys.stderr, flush=True)
                os._exit(1)
