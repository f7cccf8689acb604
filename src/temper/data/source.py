"""Where rows come from: the axis of sources.

In a recipe a source is a path (`data/train.jsonl`), a lab skill (`lab/copy`), Python's own library
(`python/summaries`), a hub id (`hub/owner/name`), or one of these names over its settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
    def shorthand(cls, rest: str) -> dict[str, object]:
        """Return the settings that the text after `name/` stands for."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """A short name for tables: `lab/copy`, `train.jsonl`."""
        raise NotImplementedError

    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        """Return the rows of a split, memory-mapped from `cache` where they are many.

        A source without splits gives the same rows for both.

        Raises:
            DataError: a bad row (with `on_bad_rows="stop"`), or a file that cannot be read.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Name the content, of every split, without parsing it: files by bytes, made data by settings and code."""
        raise NotImplementedError
