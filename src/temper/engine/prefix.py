"""What blocks that do not train give, kept on disk from one pass over the data to the next.

Where a tuner trains the upper blocks alone, the lower ones compute the same numbers of a document in every pass over
the data. They are computed once and read back after that.

Decisions:
- A document's numbers are found by its tokens: in what order, beside what and how often documents come does not matter.
- They lie in a database beside the stage's checkpoints, and go with these: what a pass adds is there whole or not at
  all, so that a run that was stopped goes on with the same bits.
- At most half of the disk's room is taken, as it was when the stage began; what is beyond is computed each time.

Legend: T packed tokens, D model width.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
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
        self.model, self.num_blocks, self.path = model, num_blocks, folder / NAME
        self.dtype, self.width, self.device = like.dtype, like.shape[1], like.device
        self.computed = self.read = 0
        """tokens whose numbers were computed, and those whose numbers were there"""
        self.warnings: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.path, isolation_level=None)
        # What a process has written outlives the process; where the system itself ends, what is lost is computed again.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE IF NOT EXISTS kept (name BLOB PRIMARY KEY, numbers BLOB)")
        (most,) = self._database.execute("PRAGMA user_version").fetchone()
        if not most:
            most = max(1, min(2**31 - 1, int(shutil.disk_usage(folder).free * SHARE_OF_DISK / _MIB)))
            self._database.execute(f"PRAGMA user_version = {most}")
        self._room = most * _MIB - self._held()

    def _held(self) -> int:
        return int(self._database.execute("SELECT total(length(numbers)) FROM kept").fetchone()[0])

    def report(self) -> dict[str, int]:
        """Return what came of it."""
        return {"blocks": self.num_blocks, "computed_tokens": self.computed, "read_tokens": self.read}

    def forget(self) -> None:
        """Begin anew: the stage does."""
        self._room += self._held()
        self._database.execute("DELETE FROM kept")

    @contextmanager
    def of_stage(self) -> Iterator[None]:
        """Be the context of a stage, in which every pass over the model begins behind what is kept."""
        self.model.prefix = self
        try:
            yield
        finally:
            self.model.prefix = None
            self._database.close()

    @contextmanager
    def in_place(
        self, tokens_T: Tensor, positions_T: Tensor, lengths: Sequence[int], is_causal: bool
    ) -> Iterator[None]:
        """Be the context in which the backbone, given these documents, begins behind the first blocks.

        Args:
            lengths: of the documents, which follow one another.
        """
        documents, positions = tokens_T.split(list(lengths)), positions_T.split(list(lengths))
        names = [_name(document, is_causal) for document in documents]
        found = self._read(names)
        missing = {name: place for place, name in enumerate(names) if name not in found}
        if missing:
            sizes = [lengths[place] for place in missing.values()]
            read_T, at_T = (torch.cat([one[place] for place in missing.values()]) for one in (documents, positions))
            layout = PackedLayout.of(sizes, self.device, is_causal)
            made = output_of(self.model, self.num_blocks, packed_inputs(read_T, at_T, layout)).split(sizes)
            found |= dict(zip(missing, made, strict=True))
            self._write({name: found[name] for name in missing})
        computed = sum(lengths[place] for place in missing.values())
        self.computed, self.read = self.computed + computed, self.read + len(tokens_T) - computed
        with behind(self.model, self.num_blocks, torch.cat([found[name] for name in names])):
            yield

    def _read(self, names: Sequence[bytes]) -> dict[bytes, Tensor]:
        found: dict[bytes, Tensor] = {}
        for start in range(0, len(names), _ASKED_AT_ONCE):
            asked = names[start : start + _ASKED_AT_ONCE]
            marks = ",".join("?" * len(asked))
            rows = self._database.execute(f"SELECT name, numbers FROM kept WHERE name IN ({marks})", asked)
            for name, numbers in rows:
                kept_TD = torch.frombuffer(bytearray(numbers), dtype=self.dtype).view(-1, self.width)
                found[name] = kept_TD.to(self.device)
        return found

    def _write(self, made: dict[bytes, Tensor]) -> None:
        size = sum(numbers.numel() * numbers.element_size() for numbers in made.values())
        if size > self._room:
            return
        self._room -= size
        rows = [
            (name, kept_TD.cpu().contiguous().view(torch.uint8).numpy().tobytes()) for name, kept_TD in made.items()
        ]
        try:
            with self._database:
                self._database.execute("BEGIN")
                self._database.executemany("INSERT INTO kept VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            self.warnings.append(f"{self.path}: {error}; what the first blocks give is computed again from here on")
            self._room = 0


def _name(tokens_T: Tensor, is_causal: bool) -> bytes:
    return blake2b(tokens_T.cpu().numpy().tobytes() + bytes([is_causal]), digest_size=16).digest()
