"""The training stage: a model and rows in, a change to the model out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from temper.core.hashing import hash_json
from temper.core.methods import methods_in
from temper.data.rows import Rows
from temper.data.source import Source
from temper.engine.checkpoint import Checkpoints
from temper.engine.fit import FitSettings, fit
from temper.engine.progress import showing_progress
from temper.stages.base import Context, Outcome, Stage
from temper.tune.base import Tuning


class Train(Stage, FitSettings, name="train"):
    """Train the model of an earlier stage on data."""

    data: tuple[Source, ...] = Field(description="sources of rows, shuffled together", min_length=1)
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model is trained, or base; the nearest model before, if not given"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="of this stage; the recipe's where not given")

    def models(self, previous: str) -> Sequence[str]:
        return (self.from_stage or previous,)

    def sources(self) -> Sequence[Source]:
        replayed = [source for share in self.shares for source in share.sources]
        measured_on = [method for method in methods_in(self.tune) if isinstance(method, Source)]
        return (*self.data, *replayed, *measured_on)

    def run(self, context: Context, previous: str) -> Outcome:
        (start,) = self.models(previous)
        parts = [context.open(source) for source in self.data]
        rows = Rows.concatenate(parts, hash_json([part.fingerprint for part in parts]))
        with showing_progress(context.name, self.budget.steps) as show:
            fitted = fit(
                context.load(start),
                rows,
                self,
                folder=context.folder,
                seed=context.seed if self.seed is None else self.seed,
                on_bad_rows=context.on_bad_rows,
                open_source=context.open,
                stage=context.name,
                on_step=show,
            )
        _save(fitted.tuning, context.folder)
        # The result is whole: the checkpoints have done their work.
        Checkpoints(context.folder / "checkpoints").remove()
        return Outcome(cost=fitted.cost, details=fitted.details, warnings=fitted.warnings)


def _save(tuning: Tuning, folder: Path) -> None:
    """Write the result beside its place and move it there, so that a kill leaves it whole or absent."""
    partial = folder / "result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tuning.save(partial)
    for child in sorted(partial.iterdir()):
        shutil.rmtree(folder / child.name, ignore_errors=True)
        child.rename(folder / child.name)
    partial.rmdir()
