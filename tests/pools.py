"""Pools of rows to choose from, as the select stage hands them to a selector."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from families import tiny
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
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
    trajectory: str | None = None,
    seed: int = 0,
    on_bad_rows: OnBadRows = "stop",
    sources: Callable[[Source], Rows] | None = None,
) -> Pool:
    """Return a pool of rows for a tiny random model.

    Args:
        trajectory: name of a stage that has warmed it up and kept snapshots.
    """
    known = models or {"base": tiny("llama")}
    folders = {**(folders or {}), **({} if trajectory is None else {trajectory: warm_up(cache)})}
    return Pool(
        rows=rows or rows_of(),
        scores=lambda of: Scores(of, cache, on_bad_rows=on_bad_rows),
        load=lambda stage: copy.deepcopy(known[stage]),
        folder=lambda stage: folders.get(stage),
        open=sources or (lambda source: source.open("train", cache)),
        model="base",
        seed=seed,
    )


def warm_up(cache: Path, optimizer: str = "adamw", **settings: Any) -> Path:
    """Return the folder of a training stage on other rows, with two snapshots; made once."""
    folder = cache / f"warm-up-{optimizer}"
    if not (folder / "stage.json").is_file():
        records = [{"prompt": f"{number}?", "completion": "yes" if number % 2 else "no"} for number in range(12)]
        written = {"tune": {"lora": {"rank": 2}}, "lr": 1e-2, "steps": 6, "batch_size": 4, "snapshots": 2, **settings}
        choices = FitSettings.model_validate({**written, "optimizer": optimizer})
        fit(tiny("llama"), rows_of(records, "warm-up"), choices, folder=folder)
        (folder / "stage.json").write_text(json.dumps({"name": "train", "models": ["base"]}))
    return folder
