"""Measure further suites at one point of the recipe: a large final test, or tasks that take long.

Decision: what every stage is measured on belongs in the recipe's `measure:`. This stage is for what is measured
once. Its numbers land in the `measure.json` of its own folder, so the report shows them as a row of their own,
compared with the base on the same examples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from temper.core.errors import SettingError
from temper.core.files import write_json
from temper.data.source import Source
from temper.measure.base import Suite
from temper.measure.report import Role, measure_model
from temper.stages.base import Context, Outcome, Stage


class Evaluate(Stage, name="evaluate"):
    """Measure a model on further suites, here only."""

    produces: ClassVar[Literal["model", "data", "files"]] = "files"

    example: ClassVar[dict[str, Any]] = {"gain": ["lab/copy"]}

    gain: tuple[Suite, ...] = Field((), description="suites that should have got better")
    keep: tuple[Suite, ...] = Field((), description="suites that should not have got worse")
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model is measured, or base; the nearest model before, if not given"
    )
    shots: int = Field(0, ge=0, description="worked examples before each prompt of the base, as a few-shot arm")
    seed: int = Field(0, ge=0, description="of the choice of examples and of the bootstrap")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.gain and not self.keep:
            raise SettingError("gain", [], "leaves nothing to measure", "name suites in `gain` or `keep`")
        return self

    def models(self, previous: str) -> Sequence[str]:
        start = self.from_stage or previous
        return (start,) if start == "base" else (start, "base")

    def sources(self) -> Sequence[Source]:
        return [source for suite in (*self.gain, *self.keep) for source in suite.sources()]

    def run(self, context: Context, previous: str) -> Outcome:
        started = time.monotonic()
        gain: list[tuple[Suite, Role]] = [(suite, "gain") for suite in self.gain]
        suites = [*gain, *((suite, "keep") for suite in self.keep)]
        base = context.load("base")
        measured = measure_model(base, suites, context.cache, seed=self.seed, shots=self.shots, say=context.say)
        stage = self.models(previous)[0]
        if stage != "base":
            fingerprint, reports, few_shot = base.fingerprint, measured["suites"], measured.get("few_shot")
            del base
            measured = measure_model(
                context.load(stage),
                suites,
                context.cache,
                seed=self.seed,
                base_fingerprint=fingerprint,
                load_base=lambda: context.load("base"),
                base_reports=reports,
                few_shot_reports=few_shot,
                say=context.say,
            )
        write_json(context.folder / "measure.json", measured)
        seconds = time.monotonic() - started
        return Outcome(cost={"seconds": seconds}, details={"suites": len(suites), "stage": stage})
