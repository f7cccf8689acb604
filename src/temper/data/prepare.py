"""Records to rows on disk: checked, brought to a few formats, and kept in the cache.

Decisions:
- What was prepared once is mapped into memory the next time. Its folder is named by the content of the files, the
  settings and the code that read them, and appears whole or not at all.
- The test split of `test_share` is decided by a hash of each row's content: the same content is never on both
  sides, whatever its other columns say, and a row keeps its side when others are added. A bad row has no content
  to go by, so both splits name it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from temper.core.errors import DataError
from temper.core.files import whole_folder
from temper.core.hashing import hash_json
from temper.core.methods import Settings
from temper.data import formats, readers, rows
from temper.data.example import Origin
from temper.data.formats import BadValue, WrittenFormat
from temper.data.readers import Broken, Item
from temper.data.rows import BadRow, Rows, RowsWriter, Stored
from temper.data.source import OnBadRows, Split

MEND = "mend or remove the row, or set on_bad_rows: skip"


class Reading(Settings):
    """How records become rows: the settings that every source of written data has."""

    format: Literal["auto"] | WrittenFormat = Field("auto", description="how the data is written; auto: by its columns")
    columns: dict[str, str] = Field({}, description="our name of a column to the data's own, as in {prompt: question}")
    limit: int | None = Field(None, gt=0, description="read only this many rows, from the start")
    test_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the rows, by content, that is the test split; 0: both splits are all rows",
    )


Part = tuple[str, Iterable[Item]]
"""a file's name and its records"""


def _json_value(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


_CODE = (formats, readers, rows, sys.modules[__name__])
_to_json = json.JSONEncoder(ensure_ascii=False, default=_json_value).encode
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


def prepare(
    parts: Iterable[Part], reading: Reading, content: str, split: Split, cache: Path, on_bad_rows: OnBadRows
) -> Rows:
    """Return the rows of a split, read from `parts` only where the cache has them not yet.

    Args:
        parts: the files and their records.
        reading: the settings.
        content: names the bytes of all parts.
        split: which rows to return.
        cache: folder of prepared data.
        on_bad_rows: stop at a bad row or put it aside.

    Raises:
        DataError: a bad row (with `stop`), no row at all, or a file that cannot be read.
    """
    settings = reading.model_dump(include=set(Reading.model_fields))
    key = hash_json([content, settings, on_bad_rows, _code_version(*_CODE)])
    folder = cache / f"rows-{key}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as partial:
            _write(partial, parts, reading, on_bad_rows)
    name: Split = split if reading.test_share else "train"
    prepared = Rows.map_file(folder / f"{name}.arrow", hash_json([key, name]))
    with (folder / "bad.jsonl").open(encoding="utf-8") as file:
        prepared.bad = [_read_bad(json.loads(line)) for line in file]
    return prepared


def _write(folder: Path, parts: Iterable[Part], reading: Reading, on_bad_rows: OnBadRows) -> None:
    threshold = int(reading.test_share * 2**64)
    count = {"train": 0, "test": 0}
    first_bad, num_bad = None, 0
    with ExitStack() as stack:
        names = ("train", "test") if reading.test_share else ("train",)
        writers = {name: stack.enter_context(RowsWriter(folder / f"{name}.arrow")) for name in names}
        bad = stack.enter_context((folder / "bad.jsonl").open("w", encoding="utf-8"))
        for stored in normalised(parts, reading, on_bad_rows):
            if isinstance(stored, BadRow):
                first_bad, num_bad = first_bad or stored, num_bad + 1
                bad.write(_to_json(dataclasses.asdict(stored)) + "\n")
                continue
            name = "test" if threshold and _place(stored) < threshold else "train"
            writers[name].add(stored)
            count[name] += 1
            if sum(count.values()) == reading.limit:
                break
    for name in names:
        if not count[name]:
            part = f" in the {name} split of test_share {reading.test_share}" if reading.test_share else ""
            files = ", ".join(dict.fromkeys(name for name, _ in parts))
            aside = (
                "" if first_bad is None else f"; {num_bad} put aside, the first {first_bad.origin}: {first_bad.reason}"
            )
            raise DataError(files, None, f"no row{part}{aside}", "give a source that has rows")


def _place(stored: Stored) -> int:
    """Return where a row's content lies between 0 and 2^64."""
    format, text, columns, _, _ = stored
    content = json.loads(text)
    if columns is None:
        content, _ = rows.split_record(content, format)
    return int.from_bytes(hashlib.blake2b(_canonical(content).encode(), digest_size=8).digest(), "big")


def normalised(parts: Iterable[Part], reading: Reading, on_bad_rows: OnBadRows = "stop") -> Iterator[Stored | BadRow]:
    """Yield every row as the table stores it.

    Raises:
        DataError: a bad row (with `stop`), or a file whose format or columns cannot be told.
    """
    for file, items in parts:
        format = reading.format
        for line, record, text in items:
            try:
                if isinstance(record, Broken):
                    raise BadValue(record.reason)
                if type(record) is dict:
                    if reading.columns:
                        record, text = _renamed(record, reading.columns), ""
                    if format == "auto":
                        format = formats.detect(record, file)
                    yield _stored(format, record, text, file, line)
                else:
                    formats.shape("text", record)
            except BadValue as error:
                if isinstance(record, Broken) and record.rest_is_lost:
                    fix = "mend the file; what follows it cannot be read, so on_bad_rows: skip does not help"
                    raise DataError(file, line, str(error), fix) from error
                if on_bad_rows == "stop":
                    raise DataError(file, line, str(error), MEND) from error
                yield BadRow(Origin(file, line), str(error), (text or _shown(record))[:2000])


def _stored(format: WrittenFormat, record: dict[str, Any], text: str, file: str, line: int | None) -> Stored:
    shaped = formats.shape(format, record)
    if shaped.content is None and text:
        if "\\ud" in text or "\\uD" in text:
            _check_text(_to_json(record))
        return shaped.format, text, None, file, line
    if shaped.content is None:
        content, columns = rows.split_record(record, shaped.format)
    else:
        content = shaped.content
        columns = {key: value for key, value in record.items() if key not in shaped.used}
    try:
        stored = shaped.format, _to_json(content), _to_json(columns), file, line
    except (TypeError, ValueError) as error:
        raise BadValue(f"a column holds what is neither text, number, list nor object: {error}") from error
    _check_text(stored[1])
    _check_text(stored[2])
    return stored


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValue(f"half a character (surrogate {text[error.start]!a}) is no text") from error


def _renamed(record: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        seen = ", ".join(map(repr, record))
        raise BadValue(f"the column {missing[0]!r} that `columns` names is missing among {seen}")
    taken = {*columns, *columns.values()}
    rest = {name: value for name, value in record.items() if name not in taken}
    return {**{ours: record[theirs] for ours, theirs in columns.items()}, **rest}


def _shown(record: object) -> str:
    return "" if isinstance(record, Broken) else json.dumps(record, ensure_ascii=False, default=str)


def _read_bad(value: dict[str, Any]) -> BadRow:
    return BadRow(Origin(**value["origin"]), value["reason"], value["text"])


def _code_version(*modules: ModuleType) -> str:
    return hash_json([*(inspect.getsource(module) for module in modules)])
