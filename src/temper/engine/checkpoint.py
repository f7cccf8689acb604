"""Checkpoints: all that a run needs to end in the same bits as if it had never stopped.

Decisions:
- A checkpoint is a folder that is whole or absent. Its tensors are written by `torch.distributed.checkpoint`, each
  process its own pieces, so that any number of processes can read them; the rest is `state.pt`, and `checksums.json`
  names every file's content. One whose bytes have changed since is passed over for the one before, and that is said.
- Training waits for a copy of its numbers only, made into memory that is used again. A thread writes it out while
  training goes on. The next checkpoint waits for the one before, and so does the end; what went wrong in the thread is
  raised there.
- Where a copy would take much of the memory that is trained in, none is made, and training waits for the writing: full
  tuning would hold three quarters more.
- Every process keeps its own state of random numbers. Another number of processes has new ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from temper.core.errors import TrainingError
from temper.core.files import write_json
from temper.core.hashing import hash_file
from temper.engine.distributed import World
from temper.engine.layout import own

KEPT = 2
COPIED_BYTES = 2**28
"""the largest copy beside a training on a CPU"""
SHARE_OF_HOST = 0.5
"""of the host's free memory, the largest copy of what lies on a GPU"""
CHECKSUMS = "checksums.json"
STATE = "state.pt"
_TENSOR = "tensor of this checkpoint"
Numbers = Mapping[str, Tensor]

# It says so each time that one process saves for itself, which is what is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoints:
    """The checkpoints of one stage, in `folder`; the last two are kept, and the last two that were the best."""

    def __init__(self, folder: Path, world: World | None = None) -> None:
        self.folder, self.world = folder, world or World()
        self.warnings: list[str] = []
        """what was passed over"""
        self._copies: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, numbers: Numbers, state: dict[str, Any]) -> None:
        """Copy the checkpoint of a step; it is written while training goes on.

        Args:
            numbers: all that training has changed, by name.

        Raises:
            TrainingError: the one before could not be written.
        """
        tensors = {f"trained.{name}": tensor for name, tensor in numbers.items()}
        rest = _take_out(state, "", tensors)
        for device, generator in _generators().items():
            tensors[f"random.{self.world.rank}.{device}"] = generator
        self._start("step", step, tensors, rest)

    def save_best(self, step: int, numbers: Numbers) -> None:
        """Keep the numbers that train as the best so far, those of a step."""
        self._start("best", step, {f"trained.{name}": tensor for name, tensor in numbers.items()}, {})

    def load_best(self, step: int, like: Numbers) -> dict[str, Tensor]:
        """Return the numbers that were the best.

        Args:
            like: the numbers as they are now, which lie as the best ones should.

        Raises:
            TrainingError: they are not there, or damaged.
        """
        self.wait()
        folder = self.folder / _name("best", step)
        damaged = self._damaged(folder)
        if damaged:
            raise TrainingError(f"{folder}: {damaged} is damaged or gone; begin the stage again (--force)")
        tensors = _room(folder, {f"trained.{name}": tensor for name, tensor in like.items()})
        self._read(folder, tensors)
        return _trained(tensors)

    def load(self, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return numbers and state of the newest checkpoint that is undamaged; None where there is none.

        Args:
            like: by its path in the state (a number's is `trained.` and its name), or by the path above it, a tensor
                that lies as that of the checkpoint should, where it has the same shape. Without one a tensor is whole
                on every process.
        """
        if self.world.is_main:
            self._remove_leftovers()
        for name in reversed(self.world.broadcast([folder.name for folder in self.saved()])):
            folder = self.folder / name
            damaged = self._damaged(folder)
            if damaged:
                self.warnings.append(
                    f"{folder}: {damaged} is damaged (its checksum differs), so training went on from before it"
                )
                continue
            tensors = _room(folder, like)
            kept = {key for key in tensors if key.startswith("random.")}
            for key in kept:
                del tensors[key]
            for device, generator in _generators().items():
                if f"random.{self.world.rank}.{device}" in kept:
                    tensors[f"random.{self.world.rank}.{device}"] = generator
            first = tensors.setdefault("random.0.cpu", torch.get_rng_state())
            self._read(folder, tensors)
            _set_generators(tensors, self.world.rank, first)
            state: dict[str, Any] = _put_back(torch.load(folder / STATE, weights_only=True), tensors)
            return _trained(tensors), state
        return None

    def saved(self, kind: str = "step") -> list[Path]:
        """Return the whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if re.fullmatch(rf"{kind}-\d{{9}}", path.name))

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            TrainingError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise TrainingError(f"{self.folder}: a checkpoint could not be written: {error}") from error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let no thread outlive the block; an error of the block comes before one of the thread."""
        try:
            yield
        except BaseException:
            if self._writer is not None:
                self._writer.join()
            raise
        self.wait()

    def remove(self) -> None:
        """Remove every checkpoint: the stage is done."""
        aside = self.folder.with_name(f"{self.folder.name}.old")
        if self.folder.is_dir():
            # Renamed first: a kill while removing must not leave a checkpoint that is half there.
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _start(self, kind: str, step: int, tensors: Mapping[str, Tensor], rest: Any) -> None:
        self.wait()
        is_copied = tensors.keys() <= self._copies.keys() or copied_bytes(tensors.values()) > 0
        written = {name: self._copy(name, tensor) for name, tensor in tensors.items()} if is_copied else dict(tensors)

        def work() -> None:
            try:
                self._write(kind, step, written, rest)
            except BaseException as error:  # raised where it is waited for
                self._error = error

        self._writer = threading.Thread(target=work, name="temper-checkpoint")
        self._writer.start()
        if not is_copied:
            self.wait()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        copied = self._copies.get(name)
        if copied is None or copied.shape != tensor.shape or copied.dtype != tensor.dtype:
            copied = self._copies[name] = tensor.to("cpu", copy=True)
        else:
            copied.copy_(tensor)
        return copied

    def _write(self, kind: str, step: int, tensors: dict[str, Tensor], rest: Any) -> None:
        place = self.folder / _name(kind, step)
        partial = place.with_suffix(".partial")
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            with (partial / STATE).open("wb") as file:
                torch.save(rest, file)
                file.flush()
                os.fsync(file.fileno())
        self._tell_writers(None)
        is_alone = self.world.size == 1
        save(tensors, storage_writer=FileSystemWriter(partial), process_group=self.world.writers, no_dist=is_alone)
        files = sorted(partial.iterdir())
        told = self._tell_writers({file.name: hash_file(file) for file in files[self.world.rank :: self.world.size]})
        if self.world.is_main:
            checksums = {name: checksum for part in told for name, checksum in part.items()}
            write_json(partial / CHECKSUMS, dict(sorted(checksums.items())))
            old = place.with_suffix(".old")
            if place.exists():  # damaged: what is whole is not written again
                place.rename(old)
            partial.rename(place)
            shutil.rmtree(old, ignore_errors=True)
            for oldest in self.saved(kind)[:-KEPT]:
                shutil.rmtree(oldest)
        self._tell_writers(None)

    def _tell_writers(self, value: Any) -> list[Any]:
        """Return what the writing thread of every process gave."""
        if self.world.size == 1:
            return [value]
        told: list[Any] = [None] * self.world.size
        dist.all_gather_object(told, value, group=self.world.writers)
        return told

    def _read(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        is_alone = self.world.size == 1
        with torch.no_grad():
            load(
                tensors,
                storage_reader=FileSystemReader(folder),
                process_group=self.world.talk,
                no_dist=is_alone,
            )

    def _damaged(self, folder: Path) -> str | None:
        """Return the name of a file that is not what was written, None where all are; each process reads some."""
        found = None
        try:
            checksums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
            for name in sorted(checksums)[self.world.rank :: self.world.size]:
                if not (folder / name).is_file() or hash_file(folder / name) != checksums[name]:
                    found = name
        except (OSError, ValueError):
            found = CHECKSUMS
        return next((name for name in self.world.gather(found) if name is not None), None)

    def _remove_leftovers(self) -> None:
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.suffix in (".partial", ".old"):
                    shutil.rmtree(path)


def copied_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the copy that is made of a checkpoint's tensors, 0 where they are written as they lie."""
    pieces = [own(tensor) for tensor in tensors]
    size = sum(piece.numel() * piece.element_size() for piece in pieces)
    on_cpu = all(piece.device.type == "cpu" for piece in pieces)
    return size if size <= (COPIED_BYTES if on_cpu else SHARE_OF_HOST * _free_bytes()) else 0


def _free_bytes() -> float:
    """Return the memory that is to be had without taking it from a program; infinite where the system does not tell."""
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return float(free[0]) if free else math.inf


def _name(kind: str, step: int) -> str:
    return f"{kind}-{step:09d}"


def paths(value: Any, path: str) -> dict[str, Tensor]:
    """Return the tensors in a tree of a state by their path: `like` of `Checkpoints.load`."""
    tensors: dict[str, Tensor] = {}
    _take_out(value, path, tensors)
    return tensors


def _take_out(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a tree with a note in the place of each tensor, which goes to `tensors` by its path."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path, "device": value.device.type}
    if isinstance(value, dict):
        return {key: _take_out(item, f"{path}.{key}" if path else str(key), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_take_out(item, f"{path}.{index}", tensors) for index, item in enumerate(value)])
    return value


def _put_back(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]].to(value["device"] if torch.cuda.is_available() else "cpu")
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_put_back(item, tensors) for item in value])
    return value


def _room(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an empty tensor for each of a checkpoint's, by its path."""
    room = {}
    for key, entry in FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), key
        room[key] = _empty(entry, like.get(key, like.get(key.rpartition(".")[0])))
    return room


def _trained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("trained."): tensor for key, tensor in tensors.items() if key.startswith("trained.")}


def _empty(entry: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    if like is not None and like.shape == entry.size:
        return torch.empty_like(like, dtype=entry.properties.dtype, requires_grad=False)
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(tensors: Mapping[str, Tensor], rank: int, first: Tensor) -> None:
    if f"random.{rank}.cpu" not in tensors:  # a process that was not there: its numbers follow from the first one's
        seed = hashlib.blake2b(first.numpy().tobytes() + rank.to_bytes(4, "big"), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(seed, "big"))
        return
    torch.set_rng_state(tensors[f"random.{rank}.cpu"])
    if f"random.{rank}.cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"random.{rank}.cuda"])
