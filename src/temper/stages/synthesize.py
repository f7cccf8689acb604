"""Make rows: seed rows and a model in, new rows out, which later stages read by the stage's name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from temper.core.errors import SettingError
from temper.data.rows import Rows, write_file
from temper.data.sources.stage import DATA_FILE
from temper.engine.precision import best_device
from temper.models.model import Model
from temper.stages.base import Context, Outcome
from temper.stages.making import MakesData, open_rows
from temper.synthesize.base import Made, Round, Synthesizer


class Synthesize(MakesData, name="synthesize"):
    """Make new rows of seed rows, with a model as it is."""

    example: ClassVar[dict[str, Any]] = {"method": "llm2llm", "data": [{"lab": {"skill": "copy", "num": 16}}]}

    method: Synthesizer = Field(description="how rows are made")
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model is asked, or base; the nearest model before, if not given"
    )

    def models(self, previous: str) -> Sequence[str]:
        return (self.from_stage or previous,)

    def run(self, context: Context, previous: str) -> Outcome:
        started = time.monotonic()
        _, seeds = open_rows(context, self.data, self.method, "synthesize")
        (start,) = self.models(previous)
        made = make(self.method, seeds, context.load(start), self.seed_in(context), context)
        kept = [*seeds, *made.rows] if self.method.keeps_data else made.rows
        if not kept:
            raise SettingError("synthesize.method", self.method.method_name, "made no row", "look at the seed rows")
        write_rows(context.folder / DATA_FILE, kept)
        context.say(", ".join(f"{count} {what}" for what, count in made.counts.items()))
        details = {"rows": len(seeds), "made": len(made.rows), "counts": made.counts}
        return Outcome({"seconds": time.monotonic() - started}, details)


def make(method: Synthesizer, seeds: Rows, model: Model, seed: int, context: Context) -> Made:
    """Let a method make rows with a model."""
    model.module.to(best_device())
    return method.make(Round(seeds, model, seed, context.on_bad_rows))


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write rows to a file that is whole or absent."""
    partial = path.with_name(f"{path.name}.partial")
    write_file(partial, rows)
    partial.replace(path)
