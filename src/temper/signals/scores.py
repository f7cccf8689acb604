"""Scores: a table of rows x signals, what a model says of each row, computed once and kept by content.

Decisions:
- A signal is one number or one vector for each row. It is named by the rows, the model, its settings and the code that
  computes it, so every selector, curriculum and mixture that asks for it again reads it from the cache.
- A row that cannot be encoded has NaN in every signal: with `on_bad_rows: skip` it is never chosen and counted;
  with `stop` it stops.
- Rows are encoded a window at a time, so that the whole of them is never held.

Legend: E rows (examples), K numbers of a signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from temper.core.code import code_version
from temper.core.errors import DataError
from temper.core.files import whole_folder
from temper.core.hashing import hash_json
from temper.data.encode import Encoder, RowError
from temper.data.example import Row, Sequence
from temper.data.rows import Rows
from temper.data.source import OnBadRows
from temper.models.model import Model
from temper.signals.likelihood import example_logprobs

WINDOW = 1_024
"""rows encoded and scored at a time"""
FIX = "mend or remove the row, set truncate: true where it is too long, or set on_bad_rows: skip"


@dataclass
class Scores:
    """The signals of one list of rows under one model.

    Args:
        rows: what is scored.
        cache: the folder in which signals are kept.
        max_length: the longest sequence in tokens, the model's own limit at most.
        truncate: cut longer rows at their end instead of taking them for bad ones.
    """

    rows: Rows
    cache: Path
    max_length: int = 2048
    truncate: bool = False
    on_bad_rows: OnBadRows = "stop"

    def kept(
        self, signal: str, model: Model, settings: object, module: str, compute: Callable[[], NDArray[np.floating]]
    ) -> NDArray[np.floating]:
        """Return a signal from the cache, computed only where it is not there; (E, ...), read-only.

        Args:
            signal: its name.
            model: the model that it is of, named by its fingerprint.
            settings: plain JSON values on which it depends besides rows and model.
            module: where it is computed: its code, and what that imports from `signals`, is part of the name.
            compute: returns it, (E, ...).

        Raises:
            DataError: a row that cannot be scored, with `on_bad_rows="stop"`.
        """
        assert not model.is_changed, "a model that was trained has no name to keep its scores by"
        limits = [self.max_length, self.truncate, self.on_bad_rows]
        code = code_version(module, ["temper.signals"])
        key = hash_json([signal, self.rows.fingerprint, model.fingerprint, settings, limits, code])
        folder = self.cache / f"scores-{key}"
        if not folder.is_dir():
            self.cache.mkdir(parents=True, exist_ok=True)
            values = compute()
            assert len(values) == len(self.rows)
            with whole_folder(folder) as partial:
                np.save(partial / "values.npy", values)
        file = folder / "values.npy"
        try:
            kept: NDArray[np.floating] = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(file, None, f"is damaged ({error})", "remove its folder, and it is made again") from error
        return kept

    def encoded(
        self, model: Model, shown: Callable[[Row], Row] | None = None
    ) -> Iterator[tuple[int, list[Sequence | None]]]:
        """Yield the index of each window's first row and its rows with loss on what the model is to write.

        None stands for a row that cannot be encoded.

        Args:
            shown: what the model reads of a row, where that is another one.
        """
        encoder = Encoder.of(model, self.max_length, self.truncate)
        for start in range(0, len(self.rows), WINDOW):
            window = self.rows.take(range(start, min(start + WINDOW, len(self.rows))))
            found = encoder.supervised_many(window if shown is None else map(shown, window))
            yield start, [self._checked(row, sequence) for row, sequence in zip(window, found, strict=True)]

    def _checked(self, row: Row, found: Sequence | RowError) -> Sequence | None:
        if not isinstance(found, RowError):
            return found
        if self.on_bad_rows == "stop":
            raise DataError(row.origin.file, row.origin.line, str(found), FIX) from found
        return None

    def logprobs(self, model: Model) -> NDArray[np.floating]:
        """Return of each row the sum of its supervised tokens' log-probabilities in nats, and their count, (E, 2)."""
        return self.kept("logprobs", model, None, __name__, lambda: self.summed_logprobs(model))

    def summed_logprobs(self, model: Model, shown: Callable[[Row], Row] | None = None) -> NDArray[np.floating]:
        """Compute what `logprobs` keeps, of the rows as they are `shown`, (E, 2)."""
        values_E2 = np.full((len(self.rows), 2), np.nan)
        for start, window in self.encoded(model, shown):
            usable = [(start + place, sequence) for place, sequence in enumerate(window) if sequence is not None]
            found = example_logprobs(model, [(sequence,) for _, sequence in usable])
            for (index, _), logprobs_N in zip(usable, found, strict=True):
                values_E2[index] = logprobs_N.sum(), len(logprobs_N)
        return values_E2

    def mean_logprobs(self, model: Model) -> NDArray[np.floating]:
        """Return the mean log-probability in nats per supervised token of each row, (E,)."""
        values_E2 = self.logprobs(model)
        return np.asarray(values_E2[:, 0] / values_E2[:, 1])
