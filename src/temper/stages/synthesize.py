"""Make rows: seed rows and a model in, new rows out, which later stages read by the stage's name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from temper.core.errors import SettingError
from temper.core.hashing import hash_json
from temper.data.rows import Rows, write_file
from temper.data.source import Source
from temper.data.sources.stage import DATA_FILE
from temper.engine.precision import best_device
from temper.models.model import Model
from temper.stages.base import Context, Outcome, Stage
from temper.synthesize.base import Made, Round, Synthesizer


class Synthesize(Stage, name="synthesize"):
    """Make new rows of seed rows, with a model as it is."""

    produces: ClassVar[Literal["model", "data", "files"]] = "data"
    example: ClassVar[dict[str, Any]] = {"method": "llm2llm", "data": [{"lab": {"skill": "copy", "num": 16}}]}

    method: Synthesizer = Field(description="how rows are made")
    data: tuple[Source, ...] = Field(description="sources of seed rows", min_length=1)
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model is asked, or base; the nearest model before, if not given"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="of this stage; the recipe's where not given")

    def models(self, previous: str) -> Sequence[str]:
        return (self.from_stage or previous,)

    def sources(self) -> Sequence[Source]:
        return self.data

    def stands(self, folder: Path, details: Mapping[str, Any]) -> bool:
        return (folder / DATA_FILE).is_file()

    def run(self, context: Context, previous: str) -> Outcome:
        started = time.monotonic()
        seeds = open_seeds(context, self.data, self.method)
        (start,) = self.models(previous)
        seed = context.seed if self.seed is None else self.seed
        made = make(self.method, seeds, context.load(start), seed, context)
        kept = [*seeds, *made.rows] if self.method.keeps_data else made.rows
        if not kept:
            raise SettingError("synthesize.method", self.method.method_name, "made no row", "look at the seed rows")
        write_rows(context.folder / DATA_FILE, kept)
        context.say(", ".join(f"{count} {what}" for what, count in made.counts.items()))
        details = {"rows": len(seeds), "made": len(made.rows), "counts": made.counts}
        return Outcome({"seconds": time.monotonic() - started}, details)


def open_seeds(context: Context, sources: Sequence[Source], method: Synthesizer) -> Rows:
    """Return the seed rows.

    Raises:
        SettingError: rows of a format that the method cannot work with, or none.
    """
    parts = [context.open(source) for source in sources]
    rows = Rows.concatenate(parts, hash_json([part.fingerprint for part in parts]))
    found = set(rows.table.column("format").unique().to_pylist())
    if not found or found - method.formats:
        known = ", ".join(sorted(method.formats))
        wrong = ", ".join(sorted(found - method.formats)) or "none"
        reason = f"cannot work with rows of format {wrong}"
        raise SettingError("method", method.method_name, reason, f"give it rows of {known}")
    return rows


def make(method: Synthesizer, seeds: Rows, model: Model, seed: int, context: Context) -> Made:
    """Let a method make rows with a model."""
    model.module.to(best_device())
    return method.make(Round(seeds, model, seed, context.on_bad_rows))


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write rows to a file that is whole or absent."""
    partial = path.with_name(f"{path.name}.partial")
    write_file(partial, rows)
    partial.replace(path)
