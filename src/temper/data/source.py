"""Where rows come from: the axis of sources.

In a recipe a source is a path (`data/train.jsonl`), a lab skill (`lab/copy`), Python's own library
(`python/summaries`), a hub id (`hub/owner/name`), or one of these names over its settings.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from temper.core.methods import Method
from temper.data.rows import Rows

Split = Literal["train", "test"]
OnBadRows = Literal["stop", "skip"]


class Source(Method, axis="source", packages=("temper.data.sources", "temper.lab")):
    """Where rows come from."""

    @classmethod
    def from_text(cls, text: str) -> tuple[str, object]:
        """Read `lab/copy` as the source `lab` and every text whose first part names no source as a path."""
        first, _, rest = text.partition("/")
        known = cls.methods()
        if rest and first in known:
            return first, known[first].shorthand(rest)
        return "file", {"path": text}

    @classmethod
    @abstractmethod
    def shorthand(cls, rest: str) -> dict[str, object]:
        """Return the settings that the text after `name/` stands for."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name for tables: `lab/copy`, `train.jsonl`."""

    @abstractmethod
    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        """Return the rows of a split, memory-mapped from `cache` where they are many.

        A source without splits gives the same rows for both.

        Raises:
            DataError: a bad row (with `on_bad_rows="stop"`), or a file that cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Name the content, of every split, without parsing it: files by bytes, made data by settings and code."""


def _as_many(written: object) -> object:
    return written if isinstance(written, list | tuple) else [written]


OneOrMore = Annotated[tuple[Source, ...], BeforeValidator(_as_many)]
"""a source, or a list of them"""
