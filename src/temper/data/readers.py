"""Files to records: JSON, JSONL, CSV, Parquet and plain text, one record at a time, each with its line.

Decisions:
- A record that cannot be read comes out as `Broken` in its place, so that the caller stops or puts it aside.
  Where what follows cannot be trusted either (a broken array, an open quote), `Broken.rest_is_lost` says so.
- Nothing is repaired: `NaN`, a repeated key, bytes that are not UTF-8, a row with too few cells are all broken.
  A byte order mark at the start of a file and blank lines at its end carry no data and are passed over.
- A `.json` file that does not begin with `[` is read as JSONL, which is how many data sets name it.
- CSV has no types. A column that is no part of a format becomes numbers when every cell of it in the file that is
  not empty is one (no leading zeros and at most 18 digits, so that codes stay text); its empty cells become None.
  Every other cell stays text. Columns of messages, tools or history hold JSON. `.tsv` is the same with tabs.
- A plain text file is one `text` record: the file is the document, and the encoder cuts long ones.
- CSV goes through Python's reader and not pyarrow's, because only it knows the line of each row.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from temper.core.errors import DataError


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read, and why."""

    reason: str
    rest_is_lost: bool = False
    """nothing after it in the file can be trusted"""


Item = tuple[int | None, Any, str]
"""1-based line (or row), the record or `Broken`, and the record's own JSON text ("" where it had none)"""

CHUNK_BYTES = 1 << 20
JSON_CELLS = frozenset({"messages", "conversations", "tools", "history", "words", "tags"})
TEXT_CELLS = JSON_CELLS | {"text", "prompt", "completion", "chosen", "rejected", "label"}
TEXT_CELLS |= {"instruction", "input", "output", "system", "class", "anchor", "positive", "negative"}
_INT = re.compile(r"0|-?[1-9]\d*")
_FLOAT = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def read(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Item]:
    """Read a file by its ending.

    Args:
        path: the file.
        columns: our name of a column to the file's, where they differ; which cells of a CSV file stay text hangs on it.

    Raises:
        DataError: the file cannot be read at all (no such file, another kind of file, a broken archive).
    """
    reader = _reader(path)
    assert reader is not None, f"{path} has no known ending"
    try:
        yield from read_csv(path, columns or {}) if reader is read_csv else reader(path)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        fix = "check that the file is whole and named by its kind"
        raise DataError(path, None, f"cannot be read ({error})", fix) from error


def is_table(path: Path) -> bool:
    """Tell whether a file holds many records, by its ending."""
    return _reader(path) not in (None, read_text)


def is_readable(path: Path) -> bool:
    """Tell whether a file can be read, by its ending."""
    return _reader(path) is not None


def _reader(path: Path) -> Callable[[Path], Iterator[Item]] | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        return READERS.get(suffixes[-2]) if len(suffixes) > 1 and suffixes[-2] != ".parquet" else None
    return READERS.get(suffixes[-1]) if suffixes else None


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value; write null")


_decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _why(error: ValueError | RecursionError, text: str = "", is_whole_line: bool = True) -> str:
    if isinstance(error, json.JSONDecodeError):
        near = text[error.pos : error.pos + 20]
        where = f" at column {error.colno}" if is_whole_line else ""
        return f"broken JSON{where}: {error.msg}" + (f", before {near!r}" if near else "")
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.object[error.start]:#04x} is not UTF-8"
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    return f"broken JSON: {error}"


def read_lines(path: Path) -> Iterator[Item]:
    """Read JSONL: one JSON value on each line."""
    decode = _decoder.raw_decode
    blank: list[int] = []
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.isspace() or not line:
                blank.append(number)
                continue
            for empty in blank:
                yield empty, Broken("the line is empty"), ""
            blank.clear()
            text = ""
            try:
                text = line.decode().strip()
                record, end = decode(text)
                if end != len(text):
                    raise json.JSONDecodeError("Extra data", text, end)
            except (ValueError, RecursionError) as error:
                yield number, Broken(_why(error, text)), text or line.decode(errors="replace")
            else:
                yield number, record, text


def read_json(path: Path) -> Iterator[Item]:
    """Read a JSON array; a file that begins otherwise is JSONL."""
    with _open(path) as file:
        head = b" "
        while head.isspace():
            head = file.read(64).removeprefix(codecs.BOM_UTF8)
    return _Array(path).items() if head.lstrip().startswith(b"[") else read_lines(path)


class _Array:
    """Reads a JSON array an element at a time, holding a chunk of text and not the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text, self.place, self.line = "", 0, 1
        self.is_all = False

    def items(self) -> Iterator[Item]:
        with _open(self.path) as file:
            self.file, self.utf8 = file, codecs.getincrementaldecoder("utf-8-sig")()
            try:
                yield from self._elements()
            except (ValueError, RecursionError) as error:
                line, text = self.line, self.text[self.place : self.place + 2000]
                if isinstance(error, json.JSONDecodeError):
                    line += self.text.count("\n", self.place, error.pos)
                elif isinstance(error, UnicodeDecodeError):
                    line += self.text.count("\n", self.place) + error.object.count(b"\n", 0, error.start)
                yield line, Broken(_why(error, self.text, is_whole_line=False), rest_is_lost=True), text

    def _elements(self) -> Iterator[Item]:
        self._expect("[")
        if self._next() == "]":
            self._expect("]")
        else:
            while True:
                self._next()
                value, end = self._value()
                line, text = self.line, self.text[self.place : end]
                self._go_to(end)
                yield line, value, text
                if self._next() != ",":
                    self._expect("]")
                    break
                self._expect(",")
        if self._next():
            raise json.JSONDecodeError("Extra data", self.text, self.place)

    def _value(self) -> tuple[Any, int]:
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.place)
                # A number that touches the end of the chunk may go on in the next.
                if end < len(self.text) or not self._more():
                    return value, end
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                if not (is_cut and self._more()):
                    raise

    def _next(self) -> str:
        """Pass over blanks and return the character there, "" at the end."""
        while True:
            found = _NOT_BLANK.search(self.text, self.place)
            self._go_to(found.start() if found else len(self.text))
            if found:
                return found.group()
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", self.text, self.place)
        self._go_to(self.place + 1)

    def _go_to(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def _more(self) -> bool:
        if self.is_all:
            return False
        # At least as much again as is held: an element of any size is tried a few times only.
        data = self.file.read(max(CHUNK_BYTES, len(self.text) - self.place))
        self.is_all = not data
        self.text = self.text[self.place :] + self.utf8.decode(data, final=self.is_all)
        self.place = 0
        return True


_NOT_BLANK = re.compile(r"[^ \t\n\r]")


def read_csv(path: Path, columns: Mapping[str, str] = MappingProxyType({})) -> Iterator[Item]:
    """Read CSV (`.tsv`: with tabs) whose first line names the columns."""
    json_cells = sorted(columns.get(name, name) for name in JSON_CELLS)
    numbers = _numbers(path, {columns.get(name, name) for name in TEXT_CELLS})
    for line, record, text in _csv_records(path):
        if not isinstance(record, Broken):
            for name, kind in numbers.items():
                record[name] = kind(record[name]) if record[name] else None
            try:
                for name in json_cells:
                    if name in record:
                        record[name] = _decoder.decode(record[name]) if record[name] else None
            except (ValueError, RecursionError) as error:
                record = Broken(f"cell {name!r}: {_why(error)}")
        yield line, record, text


def _numbers(path: Path, text_cells: set[str]) -> dict[str, type[int] | type[float]]:
    """Return the columns of a CSV file that hold nothing but numbers."""
    kinds: dict[str, type[int] | type[float]] | None = None
    for _, record, _ in _csv_records(path):
        if isinstance(record, Broken):
            continue
        if kinds is None:
            kinds = {name: int for name in record if name not in text_cells}
        for name in list(kinds):
            cell = record[name]
            if not cell or (_INT.fullmatch(cell) and len(cell) <= 18):
                continue
            if _FLOAT.fullmatch(cell) and not _INT.fullmatch(cell) and math.isfinite(float(cell)):
                kinds[name] = float
            else:
                del kinds[name]
        if not kinds:
            break
    return kinds or {}


def _csv_records(path: Path) -> Iterator[Item]:
    with _open(path) as file:
        delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
        reader = csv.reader((line.decode() for line in file), delimiter=delimiter, strict=True)
        names: list[str] = []
        blank: list[int] = []
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                if isinstance(error, UnicodeDecodeError):
                    yield reader.line_num + 1, Broken(_why(error), rest_is_lost=True), ""
                else:
                    # A quote is wrong from where its row began.
                    yield line, Broken(f"broken CSV: {error}", rest_is_lost=True), ""
                return
            if not cells:
                blank.append(line)
                continue
            if not names:
                names = [name.removeprefix("\ufeff") for name in cells]
                if len(set(names)) != len(names) or not all(names):
                    raise DataError(path, line, f"the columns {names} are not all named and different", "rename them")
                continue
            for empty in blank:
                yield empty, Broken("the line is empty"), ""
            blank.clear()
            if len(cells) != len(names):
                reason = f"{len(cells)} cells, where the first line names {len(names)} columns"
                yield line, Broken(reason), ""
            else:
                yield line, dict(zip(names, cells, strict=True)), ""


def read_parquet(path: Path) -> Iterator[Item]:
    """Read Parquet; the line is the 1-based number of the row."""
    with pq.ParquetFile(path, memory_map=True) as file:
        yield from read_batches(file.iter_batches(batch_size=1024))


def read_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[Item]:
    """Read Arrow batches; the line is the 1-based number of the row over all of them."""
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield number, record, ""


def read_text(path: Path) -> Iterator[Item]:
    """Read a whole file as one text."""
    with _open(path) as file:
        data = file.read()
    try:
        yield None, {"text": data.decode("utf-8-sig")}, ""
    except UnicodeDecodeError as error:
        yield data.count(b"\n", 0, error.start) + 1, Broken(_why(error)), ""


READERS: dict[str, Callable[[Path], Iterator[Item]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
    ".md": read_text,
}
