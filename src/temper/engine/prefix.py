"""What blocks that do not train give, kept on disk from one pass over the data to the next.

Where a tuner trains the upper blocks alone, the lower ones compute the same numbers of a document in every pass over
the data. They are computed once and read back after that.

Decisions:
- A document's numbers are found by its tokens: in what order and how often documents come does not matter. Beside what
  a document was first read decides their last bits.
- They lie in a database beside the stage's checkpoints, and go with these: what a pass adds is there whole or not at
  all, so that a run that was stopped goes on with the same bits.
- At most half of the disk's free room is taken, as it was when the stage began. The first pass that finds no room is
  the last that asks for it, or else what is there would depend on where a run was stopped.
- It is a convenience: a file that cannot be read or written is told as a warning, and training goes on without it.

Legend: T packed tokens, D model width.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from temper.models.attention import PackedLayout, packed_inputs
from temper.models.model import Model
from temper.models.prefix import behind, output_of

NAME = "prefix.sqlite"
SHARE_OF_DISK = 0.5
_MIB = 2**20
_FAILURES = sqlite3.Error, OverflowError, OSError
_ASKED_AT_ONCE = 500
"""names in a question to the database, which takes 999 at least"""


class KeptPrefix:
    """What a model's first blocks give, for documents that were read before.

    Args:
        num_blocks: how many first blocks do not train.
        like: what they gave of some tokens, (T, D).
        folder: of the stage's checkpoints.
    """

    def __init__(self, model: Model, num_blocks: int, like: Tensor, folder: Path) -> None:
        self.model, self.num_blocks = model, num_blocks
        self.dtype, self.width, self.device = like.dtype, like.shape[1], like.device
        self.store = _Store(folder / NAME)
        self.computed = self.read = 0
        """tokens whose numbers were computed, and those whose numbers were there"""

    def report(self) -> dict[str, int]:
        """Return what came of it."""
        return {"blocks": self.num_blocks, "computed_tokens": self.computed, "read_tokens": self.read}

    @contextmanager
    def of_stage(self) -> Iterator[None]:
        """Be the context of a stage, in which every pass over the model begins behind what is kept."""
        self.model.prefix = self
        try:
            yield
        finally:
            self.model.prefix = None
            self.store.close()

    @contextmanager
    def in_place(
        self, tokens_T: Tensor, positions_T: Tensor, lengths: Sequence[int], is_causal: bool
    ) -> Iterator[None]:
        """Be the context in which the backbone, given these documents, begins behind the first blocks.

        Args:
            lengths: of the documents, which follow one another.
        """
        with behind(self.model, self.num_blocks, self._of(tokens_T, positions_T, lengths, is_causal)):
            yield

    def _of(self, tokens_T: Tensor, positions_T: Tensor, lengths: Sequence[int], is_causal: bool) -> Tensor:
        """Return what the first blocks give, (T, D)."""
        documents, positions = tokens_T.split(list(lengths)), positions_T.split(list(lengths))
        names = [_name(document, is_causal) for document in documents]
        found = {
            name: torch.frombuffer(numbers, dtype=self.dtype).view(-1, self.width).to(self.device)
            for name, numbers in self.store.read(names)
        }
        missing = {name: place for place, name in enumerate(names) if name not in found}
        if missing:
            sizes = [lengths[place] for place in missing.values()]
            read_T, at_T = (torch.cat([one[place] for place in missing.values()]) for one in (documents, positions))
            layout = PackedLayout.of(sizes, self.device, is_causal)
            given_TD = output_of(self.model, self.num_blocks, packed_inputs(read_T, at_T, layout))
            made = dict(zip(missing, given_TD.split(sizes), strict=True))
            self.store.write({name: _bytes_of(numbers_TD) for name, numbers_TD in made.items()})
            found |= made
        computed = sum(lengths[place] for place in missing.values())
        self.computed, self.read = self.computed + computed, self.read + len(tokens_T) - computed
        return torch.cat([found[name] for name in names])


class _Store:
    """Bytes by name, in a file that may fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # not the file is damaged: it cannot be had
                    raise
                self.warnings.append(f"{path}: {error}; it is begun anew, and last bits may be other ones than before")
                self.close()
                for file in path.parent.glob(f"{path.name}*"):
                    file.unlink()
                self._open()
        except _FAILURES as error:
            self._give_up(error)

    def _open(self) -> None:
        self._database = database = sqlite3.connect(self.path, isolation_level=None)
        # What a process has written outlives the process. Where the system itself ends, the file may be damaged.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE IF NOT EXISTS kept (name BLOB PRIMARY KEY, numbers BLOB)")
        (most,) = database.execute("PRAGMA user_version").fetchone()
        if not most:
            free = shutil.disk_usage(self.path.parent).free
            most = max(1, min(2**31 - 1, int(free * SHARE_OF_DISK / _MIB)))
            database.execute(f"PRAGMA user_version = {most}")
        (held,) = database.execute("SELECT total(length(numbers)) FROM kept").fetchone()
        (is_full,) = database.execute("PRAGMA application_id").fetchone()
        self._room = 0 if is_full else most * _MIB - int(held)

    @property
    def takes_all(self) -> bool:
        """Whether nothing has been refused so far."""
        return self._database is not None and self._room > 0

    def _give_up(self, error: BaseException) -> None:
        self.warnings.append(f"{self.path}: {error}; what frozen blocks give is computed again from here on")
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def clear(self) -> None:
        """Forget everything: the stage begins anew."""
        if self._database is None:
            return
        try:
            self._database.execute("DELETE FROM kept")
            self._database.execute("PRAGMA user_version = 0")
            self._database.execute("PRAGMA application_id = 0")
            self.close()
            self._open()
        except _FAILURES as error:
            self._give_up(error)

    def read(self, names: Sequence[bytes]) -> Iterable[tuple[bytes, bytearray]]:
        """Return what is there of some names."""
        found: dict[bytes, bytearray] = {}
        for start in range(0, len(names), _ASKED_AT_ONCE):
            asked = names[start : start + _ASKED_AT_ONCE]
            marks = ",".join("?" * len(asked))
            if self._database is None:
                break
            try:
                rows = self._database.execute(f"SELECT name, numbers FROM kept WHERE name IN ({marks})", asked)
                found |= {name: bytearray(numbers) for name, numbers in rows}
            except _FAILURES as error:
                self._give_up(error)
        return found.items()

    def write(self, made: Mapping[bytes, bytes]) -> None:
        """Add names with their bytes: all of them or none."""
        if self._database is None or self._room <= 0:
            return
        self._room -= sum(map(len, made.values()))
        try:
            if self._room <= 0:
                self._database.execute("PRAGMA application_id = 1")
                return
            with self._database:
                self._database.execute("BEGIN")
                self._database.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", made.items())
        except _FAILURES as error:
            self._room = 0
            self.warnings.append(f"{self.path}: {error}; no more of what frozen blocks give is kept")


def _name(tokens_T: Tensor, is_causal: bool) -> bytes:
    return blake2b(tokens_T.cpu().numpy().tobytes() + bytes([is_causal]), digest_size=16).digest()


def _bytes_of(numbers_TD: Tensor) -> bytes:
    return bytes(numbers_TD.cpu().contiguous().view(torch.uint8).numpy().data)
