"""Rows from files: JSON, JSONL, CSV, Parquet and plain text, one or many."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from temper.core.errors import DataError, nearest
from temper.core.hashing import hash_files, hash_json
from temper.data.prepare import Part, Reading, prepare
from temper.data.readers import READERS, is_readable, is_table, read
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split


class FileSource(Reading, Source, name="file"):
    """Rows from a file, several files, a folder or a pattern.

    JSON (an array), JSONL, CSV, TSV and Parquet hold a row in each record; a plain text file (`.txt`, `.md`) is one
    row. All but Parquet may be compressed (`.gz`). A folder gives its tables at every depth, in the order of their
    names, or its plain text files where it has no table; hidden files and files of other kinds are left out.
    """

    example: ClassVar[dict[str, Any]] = {"path": "rows.jsonl"}

    path: tuple[str, ...] = Field(description="a file, a folder, a pattern (`data/*.jsonl`), or a list of them")

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_many(cls, written: object) -> object:
        return [str(written)] if isinstance(written, str | Path) else written

    @classmethod
    def shorthand(cls, rest: str) -> dict[str, object]:
        # A folder may be called as this source is.
        return {"path": f"{cls.method_name}/{rest}"}

    @property
    def label(self) -> str:
        names = [Path(path).name or path for path in self.path]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

    def files(self) -> list[Path]:
        """Return the files to read, in order.

        Raises:
            DataError: a path that is no file, or holds none that can be read.
        """
        if not self.path:
            raise DataError("path", None, "no file is named", "name a file, a folder or a pattern")
        return [file for path in self.path for file in _find(path)]

    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        files = self.files()
        content = hash_json([list(map(str, files)), hash_files(files)])
        return prepare(_Parts(files, self.columns), self, content, split, cache, on_bad_rows)

    def fingerprint(self) -> str:
        return hash_files(self.files())


class _Parts:
    """The files and their records, read anew whenever they are gone through."""

    def __init__(self, files: Sequence[Path], columns: dict[str, str]) -> None:
        self.files, self.columns = files, columns

    def __iter__(self) -> Iterator[Part]:
        return ((str(file), read(file, self.columns)) for file in self.files)


def _find(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        if not is_readable(place):
            raise DataError(
                path, None, "its ending names no known kind", f"known: {', '.join(READERS)}, with .gz or not"
            )
        return [place]
    if place.is_dir():
        if (place / "dataset_dict.json").is_file() or (place / "dataset_info.json").is_file():
            raise DataError(path, None, "is a folder of the datasets library", f"write {{hub: {{path: {path}}}}}")
        return _in_folder(place)
    found = sorted(Path(match) for match in glob.glob(str(place), recursive=True))
    files = [file for file in found if file.is_file() and is_readable(file)]
    if not files:
        known = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        raise DataError(path, None, "no such file", nearest(place.name, known))
    return files


def _in_folder(folder: Path) -> list[Path]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    chosen = [file for file in files if is_table(file)] or [file for file in files if is_readable(file)]
    if not chosen:
        raise DataError(folder, None, "the folder holds no file that can be read", f"known kinds: {', '.join(READERS)}")
    return chosen
