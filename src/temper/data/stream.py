"""From rows to optimizer steps: order, mixing, encoding. The same seed gives the same steps on every machine.

Decisions:
- A position in the stream is three whole numbers (epoch, place in the epoch's order, piece of the row), so a
  run continues at the exact example, however the rows are stored.
- Few rows are encoded once, before the first step, so that every bad row is known by then; many rows are
  encoded a window at a time while training, so that the first step does not wait for the last row.
- Shares of other data are held exactly by always drawing from the stream that lags furthest behind its share.
- A mixture of sources is drawn in the same way, by weights that may change while training. It is exact at any step:
  what each source is owed is part of the place in the stream.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from temper.core.errors import DataError
from temper.data.encode import RowError
from temper.data.example import Example, Origin, Row
from temper.data.example import Sequence as Tokens
from temper.data.rows import BadRow, Rows
from temper.data.source import OnBadRows

ENCODED_BEFOREHAND = 20_000
"""Up to this many rows are encoded before the first step and kept."""
WINDOW = 1_024
"""Rows encoded at a time where there are more."""

Encode = Callable[[Row], list[tuple[Tokens, ...]]]


@dataclass
class Tally:
    """What encoding met; each row counts once, however often it is drawn."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    truncated: int = 0
    """sequences that were cut"""
    truncated_tokens: int = 0
    bad: list[BadRow] = field(default_factory=list)
    longest: int = 0


class EncodedRows:
    """Rows as examples, by index.

    Args:
        rows: all rows.
        encode: turns a row into examples.
        indices: which of the rows, (rows,) int64; None for all.
        keep: up to this many rows are encoded at once and kept.
    """

    def __init__(
        self,
        rows: Rows,
        encode: Encode,
        on_bad_rows: OnBadRows = "stop",
        indices: NDArray[np.int64] | None = None,
        keep: int = ENCODED_BEFOREHAND,
    ) -> None:
        self.rows, self.encode, self.on_bad_rows = rows, encode, on_bad_rows
        self.indices = np.arange(len(rows)) if indices is None else indices
        self.tally = Tally()
        self._counted = np.zeros(len(self.indices), dtype=bool)
        self._kept: list[list[Example]] | None = None
        if len(self.indices) <= keep:
            self._kept = self._encode(range(len(self.indices)))

    def __len__(self) -> int:
        return len(self.indices)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been met so far; nothing for rows that are encoded beforehand."""
        if self._kept is not None:
            return {}
        bad = [[row.origin.file, row.origin.line, row.reason, row.text] for row in self.tally.bad]
        return {"tally": {**vars(self.tally), "bad": bad}, "counted": np.packbits(self._counted).tobytes()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state_dict` was taken."""
        if state:
            bad = [BadRow(Origin(file, line), reason, text) for file, line, reason, text in state["tally"]["bad"]]
            self.tally = Tally(**{**state["tally"], "bad": bad})
            bits = np.unpackbits(np.frombuffer(state["counted"], dtype=np.uint8), count=len(self._counted))
            self._counted = bits.astype(bool)

    def get(self, indices: Sequence[int]) -> list[list[Example]]:
        """Return the examples of each row; a row that was put aside has none.

        Raises:
            DataError: a row that cannot be trained on, with `on_bad_rows="stop"`.
        """
        if self._kept is not None:
            return [self._kept[index] for index in indices]
        return self._encode(indices)

    def _encode(self, indices: Sequence[int]) -> list[list[Example]]:
        out = []
        for index, row in zip(indices, self.rows.take(self.indices[list(indices)]), strict=True):
            try:
                examples = [Example(sequences, row.columns, row.origin) for sequences in self.encode(row)]
            except RowError as error:
                if self.on_bad_rows == "stop":
                    fix = "mend or remove the row, set truncate: true where it is too long, or set on_bad_rows: skip"
                    raise DataError(row.origin.file, row.origin.line, str(error), fix) from error
                examples = []
                if not self._counted[index]:
                    self.tally.bad.append(
                        BadRow(row.origin, str(error), json.dumps(dict(row.content), ensure_ascii=False)[:2000])
                    )
            if not self._counted[index]:
                self._counted[index] = True
                self._count(examples)
            out.append(examples)
        return out

    def _count(self, examples: list[Example]) -> None:
        tally = self.tally
        tally.rows += 1
        tally.examples += len(examples)
        for example in examples:
            for sequence in example.sequences:
                tally.tokens += len(sequence.tokens_T)
                tally.longest = max(tally.longest, len(sequence.tokens_T))
                tally.truncated += sequence.num_truncated > 0
                tally.truncated_tokens += sequence.num_truncated


@dataclass(frozen=True)
class Place:
    """Where a stream stands: what it gives next."""

    epoch: int = 0
    row: int = 0
    """place in the epoch's order"""
    piece: int = 0
    """example of that row"""


class ShuffledStream:
    """Examples without end, in a fresh order every epoch."""

    def __init__(self, encoded: EncodedRows, seed: int, place: Place | None = None, shuffle: bool = True):
        self.encoded, self.seed, self.shuffle = encoded, seed, shuffle
        self.place = place or Place()
        self._order_epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._window: tuple[int, int] = (-1, -1)
        self._examples: list[list[Example]] = []

    def next(self) -> Example:
        """Return the next example.

        Raises:
            DataError: every row was put aside.
        """
        self._pass_empty_rows()
        if self.place.row >= len(self.encoded):
            self.place = Place(self.place.epoch + 1)
            self._pass_empty_rows()
        place = self.place
        if place.row >= len(self.encoded):
            raise DataError("data", None, "no row is left to train on", "look at the rows put aside")
        examples = self._row(place)
        is_last = place.piece + 1 == len(examples)
        self.place = Place(place.epoch, place.row + 1) if is_last else Place(place.epoch, place.row, place.piece + 1)
        self._pass_empty_rows()
        return examples[place.piece]

    def _pass_empty_rows(self) -> None:
        """Step over rows that were put aside, to the end of the epoch at most: an epoch ends with its last example."""
        while self.place.row < len(self.encoded) and not self._row(self.place):
            self.place = Place(self.place.epoch, self.place.row + 1)

    def is_past(self, epochs: float) -> bool:
        """Whether `epochs` passes have been given out."""
        return self.passes >= epochs

    @property
    def passes(self) -> float:
        """Passes over the rows given out so far."""
        return self.place.epoch + self.place.row / max(1, len(self.encoded))

    @property
    def epoch(self) -> int:
        """Whole passes given out so far."""
        return self.place.epoch

    @property
    def parts(self) -> tuple[EncodedRows, ...]:
        """The rows that it draws from."""
        return (self.encoded,)

    def state_dict(self) -> list[int]:
        """Return where it stands, as plain values."""
        return [self.place.epoch, self.place.row, self.place.piece]

    def load_state_dict(self, state: list[int]) -> None:
        """Go on where `state_dict` was taken."""
        self.place = Place(*state)

    def _row(self, place: Place) -> list[Example]:
        if place.epoch != self._order_epoch:
            count = len(self.encoded)
            generator = np.random.default_rng([self.seed, place.epoch])
            self._order = generator.permutation(count) if self.shuffle else np.arange(count)
            self._order_epoch, self._window = place.epoch, (-1, -1)
        window = (place.epoch, place.row // WINDOW)
        if window != self._window:
            start = window[1] * WINDOW
            self._examples = self.encoded.get([int(index) for index in self._order[start : start + WINDOW]])
            self._window = window
        return self._examples[place.row % WINDOW]


@dataclass(frozen=True)
class MixedPlace:
    """Where a mixture stands."""

    places: tuple[Place, ...]
    owed: tuple[float, ...]
    """examples by which each source lags behind its weights so far; their sum is 0"""
    drawn: tuple[int, ...]
    """examples given out of each source"""


class MixedStream:
    """Examples without end, of several sources in the proportion of their weights.

    Args:
        streams: one for each source.
        weights: returns the sources' weights now, at least 0 and 1 in sum; asked before every example.
        is_live: the weights follow from the training, so that examples cannot be drawn ahead of it.
    """

    def __init__(
        self, streams: Sequence[ShuffledStream], weights: Callable[[], Sequence[float]], is_live: bool = False
    ) -> None:
        self.streams, self.weights, self.is_live = tuple(streams), weights, is_live
        self._owed = [0.0] * len(self.streams)
        self._drawn = [0] * len(self.streams)

    @property
    def place(self) -> MixedPlace:
        """Where it stands."""
        return MixedPlace(tuple(stream.place for stream in self.streams), tuple(self._owed), tuple(self._drawn))

    @place.setter
    def place(self, place: MixedPlace) -> None:
        for stream, own in zip(self.streams, place.places, strict=True):
            stream.place = own
        self._owed, self._drawn = list(place.owed), list(place.drawn)

    def next(self) -> Example:
        """Return the next example, of the source that lags furthest behind.

        Raises:
            DataError: every row of that source was put aside.
        """
        owed = [owed + weight for owed, weight in zip(self._owed, self.weights(), strict=True)]
        index = int(np.argmax(owed))
        example = self.streams[index].next()
        owed[index] -= 1
        self._owed = owed
        self._drawn[index] += 1
        return example

    def is_past(self, epochs: float) -> bool:
        """Whether as many rows have been given out as `epochs` passes over all sources together hold."""
        return self.passes >= epochs

    @property
    def passes(self) -> float:
        """Rows given out so far, as a multiple of those that all sources hold together."""
        given = sum(stream.place.epoch * len(stream.encoded) + stream.place.row for stream in self.streams)
        return given / max(1, sum(len(stream.encoded) for stream in self.streams))

    @property
    def epoch(self) -> int:
        """Whole passes given out so far."""
        return int(self.passes)

    @property
    def parts(self) -> tuple[EncodedRows, ...]:
        """The rows that it draws from."""
        return tuple(stream.encoded for stream in self.streams)

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands, as plain values."""
        places = [stream.state_dict() for stream in self.streams]
        return {"places": places, "owed": list(self._owed), "drawn": list(self._drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for stream, own in zip(self.streams, state["places"], strict=True):
            stream.load_state_dict(own)
        self._owed, self._drawn = list(state["owed"]), list(state["drawn"])


Stream = ShuffledStream | MixedStream


@dataclass(frozen=True)
class Step:
    """The examples of one optimizer step, and where the stream stands after it."""

    examples: tuple[Example, ...]
    progress: float
    """share of the budget used up *before* this step"""
    progress_after: float
    epoch: int
    """passes over the data given out before this step"""
    state: dict[str, Any]
    """what `Steps` needs to go on after this step"""
    passes: float = 0.0
    """passes over the data given out before this step, the current one's share included"""


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: passes over its data, optimizer steps, or tokens; exactly one is given."""

    epochs: float | None = None
    steps: int | None = None
    tokens: int | None = None
    """of all streams; the example that reaches it is the last one"""

    def __post_init__(self) -> None:
        assert [self.epochs, self.steps, self.tokens].count(None) == 2


class Steps:
    """The optimizer steps of a stage: `main` and, in fixed shares, other streams.

    Args:
        main: the stage's own data; the budget counts its passes.
        shares: other streams, each with its part of every batch.
        batch_size: examples in a step, or None.
        batch_tokens: tokens in a step at most, or None; exactly one of the two is given.
    """

    def __init__(
        self,
        main: Stream,
        shares: Sequence[tuple[ShuffledStream, float]],
        budget: Budget,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        assert (batch_size is None) != (batch_tokens is None)
        self.streams: list[Stream] = [main, *(stream for stream, _ in shares)]
        self.parts = [1 - sum(part for _, part in shares), *(part for _, part in shares)]
        self.budget, self.batch_size, self.batch_tokens = budget, batch_size, batch_tokens
        self.used = [0] * len(self.streams)
        self.step = self.tokens = 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the streams stand; an example that waits for the next step is drawn again."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "used": list(self.used),
            "places": [stream.state_dict() for stream in self.streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.tokens, self.used = state["step"], state["tokens"], list(state["used"])
        for stream, place in zip(self.streams, state["places"], strict=True):
            stream.load_state_dict(place)

    @property
    def encoded(self) -> list[EncodedRows]:
        """The rows of all streams."""
        return [part for stream in self.streams for part in stream.parts]

    @property
    def is_live(self) -> bool:
        """Whether what is drawn follows from the training so far."""
        return any(isinstance(stream, MixedStream) and stream.is_live for stream in self.streams)

    @property
    def passes(self) -> float | None:
        """How often the budget goes through the stage's own rows; None where tokens decide, which are not known yet."""
        if self.budget.steps is not None and self.batch_size is not None:
            rows = sum(map(len, self.streams[0].parts))
            return self.budget.steps * self.batch_size * self.parts[0] / max(1, rows)
        return self.budget.epochs

    @property
    def progress(self) -> float:
        """Share of the budget used up, 0 to 1."""
        if self.budget.steps is not None:
            return min(1.0, self.step / self.budget.steps)
        if self.budget.tokens is not None:
            return min(1.0, self.tokens / self.budget.tokens)
        assert self.budget.epochs is not None
        return min(1.0, self.streams[0].passes / self.budget.epochs)

    def __iter__(self) -> Iterator[Step]:
        while self.progress < 1:
            progress, epoch, passes = self.progress, self.streams[0].epoch, self.streams[0].passes
            examples = self._draw()
            self.step += 1
            yield Step(tuple(examples), progress, self.progress, epoch, self.state_dict(), passes)

    def _draw(self) -> list[Example]:
        drawn: list[Example] = []
        size = 0
        while True:
            total = sum(self.used)
            lag = [part * (total + 1) - used for part, used in zip(self.parts, self.used, strict=True)]
            index = int(np.argmax(lag))
            stream = self.streams[index]
            if self.budget.epochs is not None and self.streams[0].is_past(self.budget.epochs):
                return drawn
            if self.budget.tokens is not None and self.tokens >= self.budget.tokens:
                return drawn
            before = stream.place
            example = stream.next()
            cost = 1 if self.batch_size is not None else example.num_tokens
            limit = self.batch_size if self.batch_size is not None else self.batch_tokens
            assert limit is not None
            if drawn and size + cost > limit:
                stream.place = before
                return drawn
            drawn.append(example)
            size += cost
            self.tokens += example.num_tokens
            self.used[index] += cost
            if size >= limit:
                return drawn


Item = TypeVar("Item")


def ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """Make up to `depth` items beforehand in a thread; an error is raised where its item would have come."""
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def offer(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                made.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer((item, None))
                if stop.is_set():
                    return
            offer((None, None))
        except BaseException as error:
            offer((None, error))

    thread = threading.Thread(target=work, name="temper-data", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
