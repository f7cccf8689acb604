"""Rows of data: an Arrow table, memory-mapped when large, with where each row came from.

The table has the columns `format`, `content` (JSON text), `columns` (JSON text), `file` and `line`.
JSON keeps whatever a row holds, nested or ragged, without a schema; a row is parsed when it is drawn.

Decisions:
- Where `columns` is null, `content` is the whole row just as it was written, and is divided into content and
  columns when it is drawn: opening a million rows then writes no JSON of its own.
- Rows are drawn one value at a time from the batch that holds them. `pyarrow.Table.take` would first put all
  batches together, and so read the whole file into memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from temper.core.errors import DataError
from temper.data.example import Format, Origin, Row

SCHEMA = pa.schema(
    [
        ("format", pa.dictionary(pa.int8(), pa.string())),
        ("content", pa.large_string()),
        ("columns", pa.large_string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("line", pa.int64()),
    ]
)
ROWS_PER_BATCH = 16_384
CHARACTERS_PER_BATCH = 32_000_000
FORMATS: tuple[Format, ...] = get_args(Format)

CONTENT_KEYS: dict[Format, frozenset[str]] = {
    "text": frozenset({"text"}),
    "messages": frozenset({"messages", "tools"}),
    "completion": frozenset({"prompt", "completion", "tools"}),
    "preference": frozenset({"prompt", "chosen", "rejected", "tools"}),
    "label": frozenset({"prompt", "completion", "label", "tools"}),
    "class": frozenset({"text", "class"}),
    "tags": frozenset({"words", "tags"}),
    "pair": frozenset({"anchor", "positive", "negative"}),
}

Stored = tuple[Format, str, str | None, str, int | None]
"""format, content, columns, file and line of a row, as the table holds them"""

_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class BadRow:
    """A row that was put aside, with the reason."""

    origin: Origin
    reason: str
    text: str
    """the row as written, at most 2,000 characters"""


@dataclass
class Rows:
    """A random-access list of rows."""

    table: pa.Table
    fingerprint: str
    """names the content"""
    bad: list[BadRow] = field(default_factory=list)
    """rows put aside by `on_bad_rows: skip`"""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                values = batch.slice(start, ROWS_PER_BATCH).to_pydict()
                for stored in zip(*(values[name] for name in SCHEMA.names), strict=True):
                    yield _row(stored)

    def take(self, indices: Iterable[int]) -> list[Row]:
        """Return the rows at `indices`, in that order; a negative one or one past the end is an IndexError."""
        picked = np.fromiter(indices, dtype=np.int64)
        if len(picked) and (picked.min() < 0 or picked.max() >= len(self)):
            raise IndexError(f"rows {picked.min()} to {picked.max()} of {len(self)}")
        numbers = np.searchsorted(self._ends, picked, side="right")
        rows = []
        for index, number in zip(picked.tolist(), numbers.tolist(), strict=True):
            batch, end = self._columns[number], int(self._ends[number])
            place = index - end + len(batch[0])
            rows.append(_row(tuple(column[place].as_py() for column in batch)))
        return rows

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [batch for batch in self.table.to_batches() if batch.num_rows]

    @cached_property
    def _columns(self) -> list[list[pa.Array]]:
        return [batch.columns for batch in self._batches]

    @cached_property
    def _ends(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    @staticmethod
    def from_rows(rows: Iterable[Row], fingerprint: str) -> Rows:
        """Hold rows in memory."""
        return Rows(pa.Table.from_batches(list(to_batches(rows)), schema=SCHEMA), fingerprint)

    @staticmethod
    def from_list(
        records: Sequence[Mapping[str, Any]], format: Format, fingerprint: str, name: str = "<memory>"
    ) -> Rows:
        """Hold records of one format in memory; keys that the format does not use become columns."""
        numbered = enumerate(records, 1)
        return Rows.from_rows(
            (Row(format, *split_record(record, format), Origin(name, number)) for number, record in numbered),
            fingerprint,
        )

    @staticmethod
    def concatenate(parts: Sequence[Rows], fingerprint: str) -> Rows:
        """Put several lists of rows one after another, without copying them."""
        tables = [part.table for part in parts]
        return Rows(
            pa.concat_tables(tables) if tables else SCHEMA.empty_table(),
            fingerprint,
            [bad for part in parts for bad in part.bad],
        )

    @staticmethod
    def map_file(path: Path, fingerprint: str) -> Rows:
        """Memory-map what `write_file` wrote.

        Raises:
            DataError: the file is not whole.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(path, None, f"is damaged ({error})", "remove its folder, and it is made again") from error
        return Rows(table, fingerprint)


def split_record(record: Mapping[str, Any], format: Format) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide a record into what the format uses and every other column."""
    keys = CONTENT_KEYS[format]
    return (
        {key: value for key, value in record.items() if key in keys},
        {key: value for key, value in record.items() if key not in keys},
    )


def store(row: Row) -> Stored:
    """Return a row as the table holds it."""
    return row.format, _to_json(dict(row.content)), _to_json(dict(row.columns)), row.origin.file, row.origin.line


def _row(stored: tuple[Any, ...]) -> Row:
    format, text, columns_text, file, line = stored
    content = json.loads(text)
    if columns_text is None:
        content, columns = split_record(content, format)
    else:
        columns = json.loads(columns_text)
    return Row(format, content, columns, Origin(file, line))


class Batcher:
    """Gathers rows into Arrow batches; the dictionary of file names only grows, so batches fit into one file."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._waiting: list[Stored] = []
        self._characters = 0

    def add(self, stored: Stored) -> pa.RecordBatch | None:
        """Take a row; return a batch when one is full."""
        self._waiting.append(stored)
        self._characters += len(stored[1])
        if len(self._waiting) == ROWS_PER_BATCH or self._characters > CHARACTERS_PER_BATCH:
            return self.rest()
        return None

    def rest(self) -> pa.RecordBatch | None:
        """Return what waits as a batch, None when nothing does."""
        if not self._waiting:
            return None
        formats, contents, columns, files, lines = zip(*self._waiting, strict=True)
        file_numbers = [self._files.setdefault(file, len(self._files)) for file in files]
        self._waiting, self._characters = [], 0
        return pa.record_batch(
            [
                pa.DictionaryArray.from_arrays(pa.array(map(FORMATS.index, formats), pa.int8()), list(FORMATS)),
                pa.array(contents, pa.large_string()),
                pa.array(columns, pa.large_string()),
                pa.DictionaryArray.from_arrays(pa.array(file_numbers, pa.int32()), list(self._files)),
                pa.array(lines, pa.int64()),
            ],
            schema=SCHEMA,
        )


class RowsWriter:
    """Writes rows to an Arrow file, a batch at a time."""

    def __init__(self, path: Path) -> None:
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
        self._writer = pa.ipc.new_file(str(path), SCHEMA, options=options)
        self._batcher = Batcher()

    def add(self, stored: Stored) -> None:
        """Write a row."""
        batch = self._batcher.add(stored)
        if batch is not None:
            self._writer.write_batch(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        batch = self._batcher.rest() if error is None else None
        if batch is not None:
            self._writer.write_batch(batch)
        self._writer.close()


def write_file(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to an Arrow file, a batch at a time."""
    with RowsWriter(path) as writer:
        for row in rows:
            writer.add(store(row))


def to_batches(rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    """Turn rows into Arrow batches."""
    batcher = Batcher()
    for row in rows:
        batch = batcher.add(store(row))
        if batch is not None:
            yield batch
    batch = batcher.rest()
    if batch is not None:
        yield batch
