"""Choose rows: data and a model in, the rows worth training on out.

What it leaves: `data.arrow`, the kept rows with their score in a column, which later stages read by the stage's name;
and `scores.parquet`, every row's place, score and whether it was kept.

Legend: E rows (examples).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import Field

from temper.core.errors import DataError, SettingError
from temper.data.rows import Rows, write_file
from temper.data.source import Source
from temper.data.sources.stage import DATA_FILE
from temper.engine.precision import best_device
from temper.models.model import Model
from temper.select.base import Pool, Selection, Selector
from temper.signals.scores import Scores
from temper.stages.base import Context, Outcome
from temper.stages.making import MakesData, open_rows

SCORES_FILE = "scores.parquet"


class Select(MakesData, name="select"):
    """Choose the rows that are worth training on."""

    example: ClassVar[dict[str, Any]] = {
        "method": "random",
        "data": [{"lab": {"skill": skill, "num": 16}} for skill in ("copy", "shift")],
    }

    method: Selector = Field(description="how rows are chosen")
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model they are chosen for, or base; the nearest before by default"
    )
    column: str = Field("score", min_length=1, description="the column in which a kept row's score is written")
    max_length: int = Field(2048, ge=2, description="longest row in tokens, the model's own limit at most")
    truncate: bool = Field(False, description="score longer rows by their beginning instead of taking them for bad")

    def models(self, previous: str) -> Sequence[str]:
        own = (self.from_stage or previous,) if self.method.needs_model else ()
        return list(dict.fromkeys([*own, *self.method.models()]))

    def run(self, context: Context, previous: str) -> Outcome:
        started = time.monotonic()
        parts, rows = open_rows(context, self.data, self.method, "select")
        tables: list[Scores] = []

        def scores(of: Rows) -> Scores:
            tables.append(Scores(of, context.cache, self.max_length, self.truncate, context.on_bad_rows))
            return tables[-1]

        def load(stage: str) -> Model:
            model = context.load(stage)
            model.module.to(best_device())
            return model

        of = self.from_stage or previous
        pool = Pool(rows, scores, load, context.artifact, context.open, of, self.seed_in(context))
        selection = self.method.select(pool)
        if not len(selection.kept):
            raise SettingError("select.method", self.method.method_name, "kept no row", "look at the rows put aside")
        self._write(context.folder, rows, selection)
        bad = [row for part in parts for row in part.bad]
        num_unscored = int(np.isnan(selection.score_E).sum())
        context.say(f"kept {len(selection.kept)} of {len(rows)} rows")
        warnings = [f"{num_unscored} rows have no score and were left out"] if num_unscored else []
        details = {
            "rows": len(rows),
            "kept": len(selection.kept),
            "bad_rows": len(bad) + num_unscored,
            "kept_of": _counts(self.data, parts, selection),
            "scores": _quantiles(selection),
        }
        return Outcome({"seconds": time.monotonic() - started}, details, warnings)

    def _write(self, folder: Path, rows: Rows, selection: Selection) -> None:
        kept = rows.take(selection.kept)
        taken = next((row for row in kept if self.column in row.columns), None)
        if taken is not None:
            reason = f"has a column {self.column!r} already, in which its score would be written"
            raise DataError(taken.origin.file, taken.origin.line, reason, "name another one by `column`")
        scored = (
            replace(row, columns={**row.columns, self.column: float(selection.score_E[index])})
            for row, index in zip(kept, selection.kept, strict=True)
        )
        partial = folder / f"{DATA_FILE}.partial"
        write_file(partial, scored)
        is_kept_E = np.zeros(len(rows), dtype=bool)
        is_kept_E[selection.kept] = True
        numbers = {"score": selection.score_E, **(selection.parts or {}), "kept": is_kept_E}
        table = rows.table.select(["file", "line"])
        for name, values_E in numbers.items():
            table = table.append_column(name, pa.array(np.asarray(values_E)))
        pa.parquet.write_table(table, folder / SCORES_FILE)
        partial.replace(folder / DATA_FILE)


def _counts(sources: Sequence[Source], parts: Sequence[Rows], selection: Selection) -> list[dict[str, Any]]:
    """Return how many rows of each source were kept."""
    ends = np.cumsum([0, *(len(part) for part in parts)])
    counts, _ = np.histogram(selection.kept, ends) if ends[-1] else (np.zeros(len(parts)), None)
    return [
        {"source": source.label, "rows": len(part), "kept": int(count)}
        for source, part, count in zip(sources, parts, counts, strict=True)
    ]


def _quantiles(selection: Selection) -> dict[str, list[float]]:
    """Return least, lower quartile, median, upper quartile and greatest score of what was kept and what was left."""
    left_E = np.delete(selection.score_E, selection.kept)
    groups: dict[str, NDArray[np.floating]] = {"kept": selection.score_E[selection.kept], "left": left_E}
    scored = {name: values[~np.isnan(values)] for name, values in groups.items()}
    return {
        name: [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]
        for name, values in scored.items()
        if len(values)
    }
