"""Rows through the `datasets` library: a hub id, or a folder that its `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from temper.core.errors import DataError, MissingExtra, nearest
from temper.core.hashing import hash_file, hash_json
from temper.data.prepare import Part, Reading, prepare
from temper.data.readers import read_batches
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split


class HubSource(Reading, Source, name="hub"):
    """Rows from the Hugging Face hub, or from a folder written by `datasets`."""

    extra: ClassVar[str] = "hub"

    example: ClassVar[dict[str, Any]] = {"path": "rows"}

    path: str = Field(description="a hub id (`owner/name`), or a folder that `save_to_disk` wrote")
    config: str | None = Field(None, description="the data set's configuration, where it has several")
    revision: str | None = Field(None, description="branch, tag or commit on the hub; name a commit to pin the data")
    train: str = Field("train", description="the data set's split to train on")
    test: str | None = Field(
        None, description="the data set's split to measure on; none: a part of `train` by `test_share`, or all of it"
    )

    def idle(self) -> dict[str, str]:
        return {} if self.test is None else {"test_share": "where `test` names no split to measure on"}

    @classmethod
    def shorthand(cls, rest: str) -> dict[str, object]:
        return {"path": rest}

    @property
    def label(self) -> str:
        return f"hub/{self.path}" + (f"/{self.config}" if self.config else "")

    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        name = self.test if split == "test" and self.test else self.train
        if split == "test" and not self.test and not self.test_share and "test" in self._splits():
            fix = "write test: test to measure on it, or test: train to measure on what is trained on"
            raise DataError(self.label, None, "has a split 'test', and the source does not say whether to use it", fix)
        reading: Reading = self
        if self.test:
            # Two splits that the data set itself divided: nothing of either is held back.
            reading = self.model_copy(update={"test_share": 0.0})
        data = self._load(name)
        parts: list[Part] = [(f"{self.label}[{name}]", read_batches(_batches(data)))]
        return prepare(parts, reading, _fingerprint(data), split, cache, on_bad_rows)

    def fingerprint(self) -> str:
        return hash_json([_fingerprint(self._load(name)) for name in (self.train, self.test) if name])

    def _splits(self) -> list[str]:
        loaded = self._loaded()
        return [str(name) for name in loaded] if isinstance(loaded, dict) else []

    def _load(self, split: str) -> Any:
        loaded = self._loaded()
        if not isinstance(loaded, dict):
            return loaded
        if split not in loaded:
            raise DataError(self.label, None, f"has no split {split!r}", nearest(split, map(str, loaded)))
        return loaded[split]

    def _loaded(self) -> Any:
        """Return the data set, or its splits by name."""
        try:
            import datasets
        except ImportError as error:
            raise MissingExtra("datasets", self.extra, f"the source hub ({self.path})") from error
        folder = Path(self.path).expanduser()
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(folder))
        else:
            try:
                return datasets.load_dataset(self.path, self.config, revision=self.revision)
            except (OSError, ValueError) as error:
                fix = "check the id, the configuration and the connection, or give the path of a folder"
                raise DataError(self.label, None, f"cannot be loaded ({error})", fix) from error


def _batches(data: Any) -> Iterator[Any]:
    for table in data.with_format("arrow").iter(1024):
        yield from table.to_batches()


def _fingerprint(data: Any) -> str:
    """Name a data set by the bytes of its Arrow files."""
    files = [Path(entry["filename"]) for entry in data.cache_files]
    assert files, "a data set from disk or hub has files"
    return hash_json([hash_file(file) for file in files])
