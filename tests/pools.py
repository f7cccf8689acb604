"""Pools of rows to choose from, as the select stage hands them to a selector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from families import tiny
from temper.data.rows import Rows
from temper.data.source import OnBadRows
from temper.models.model import Model
from temper.select.base import Pool
from temper.signals.scores import Scores

RECORDS = [
    {"prompt": "how many?", "completion": "two"},
    {"prompt": "how many?", "completion": "there are two of them"},
    {"prompt": "which one?", "completion": "that one"},
    {"prompt": "how many?", "completion": "2"},
    {"prompt": "which one?", "completion": "the other one, I think"},
    {"prompt": "why?", "completion": "because"},
]


def rows_of(records: Sequence[Mapping[str, Any]] = RECORDS, name: str = "pool") -> Rows:
    return Rows.from_list(records, "completion", f"{name} {list(records)}", name)


def make_pool(
    cache: Path,
    rows: Rows | None = None,
    models: Mapping[str, Model] | None = None,
    folders: Mapping[str, Path] | None = None,
    seed: int = 0,
    on_bad_rows: OnBadRows = "stop",
    sources: Mapping[str, Rows] | None = None,
) -> Pool:
    """Return a pool of rows for a tiny random model."""
    known = models or {"base": tiny("llama")}
    return Pool(
        rows=rows or rows_of(),
        scores=lambda of: Scores(of, cache, on_bad_rows=on_bad_rows),
        load=lambda stage: known[stage],
        folder=lambda stage: (folders or {}).get(stage),
        open=lambda source: (sources or {})[source.label],
        model="base",
        seed=seed,
    )
