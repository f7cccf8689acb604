"""Rounds: make rows with the model as it is, train on them, and again with the model that came out.

Decisions:
- Each round trains the stage's own start anew, on all the data there is then: a round repairs what the one before
  taught, and the result is one change to the start, however many rounds there were. Rounds that go on from one another
  are stages of their own, `synthesize` and `train` in turn.
- Every round has a folder, `round-1` and so on, with the data that it made and the model that it asked. A stage that
  was killed finds them there and goes on in the round, and at the step, where it was.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from temper.core.errors import SettingError
from temper.core.files import write_json
from temper.data.rows import Rows
from temper.data.source import Source
from temper.data.sources.stage import DATA_FILE
from temper.delta.base import read_delta
from temper.engine.settings import FitSettings
from temper.models.load import load_model
from temper.models.model import Model
from temper.stages.base import Context, Outcome, Stage
from temper.stages.making import open_rows
from temper.stages.synthesize import make, write_rows
from temper.stages.train import sources_of, train_into
from temper.synthesize.base import Synthesizer

REPORT = "round.json"


class Rounds(Stage, name="rounds"):
    """Train in rounds, on rows that each round makes with the model of the round before."""

    example: ClassVar[dict[str, Any]] = {
        "method": "llm2llm",
        "data": [{"lab": {"skill": "copy", "num": 8}}],
        "num": 1,
        "train": {"steps": 1, "batch_size": 4},
    }

    method: Synthesizer = Field(description="how rows are made")
    data: tuple[Source, ...] = Field(description="sources of seed rows", min_length=1)
    num: int = Field(3, ge=1, description="rounds, each of which makes rows; a training follows each")
    train: FitSettings = Field(
        default_factory=FitSettings, description="how each training goes, as in a training stage"
    )
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model is trained, or base; the nearest model before, if not given"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="of this stage; the recipe's where not given")

    def models(self, previous: str) -> Sequence[str]:
        return tuple(dict.fromkeys((self.starts_from(previous), *self.train.asked_models)))

    def starts_from(self, previous: str) -> str:
        return self.from_stage or previous

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        return super().prompt_length(lengths, previous) + self.train.tune.prompt_length

    def sources(self) -> Sequence[Source]:
        return (*self.data, *sources_of(self.train))

    def run(self, context: Context, previous: str) -> Outcome:
        start = self.starts_from(previous)
        _, seeds = open_rows(context, self.data, self.method, "rounds")
        seed = context.seed if self.seed is None else self.seed
        running = _Running(self, context, start, seed)
        data, trained = seeds, None
        rounds = []
        for number in range(1, self.num + 1):
            folder = context.folder / f"round-{number}"
            folder.mkdir(exist_ok=True)
            if not (folder / DATA_FILE).is_file():
                if number > 1 or self.method.trains_first:
                    trained = running.train(folder, data)
                running.make(folder, number, seeds, trained)
            made = Rows.map_file(folder / DATA_FILE, "")
            data = Rows.concatenate([data, made], "") if self.method.keeps_data else made
            if len(data) == 0:
                reason = f"made no row in round {number}"
                raise SettingError("rounds.method", self.method.method_name, reason, "look at the seed rows")
            counts: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            rounds.append({"round": number, "rows": len(data), **counts})
            context.say(f"round {number}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
        outcome = train_into(context.folder, context, [data], context.load(start), self.train, seed)
        outcome.details["rounds"] = rounds
        for earlier in sorted(context.folder.glob(f"round-*/trained/{REPORT}")):
            cost: dict[str, float] = json.loads(earlier.read_text(encoding="utf-8"))
            for name, value in cost.items():
                joined = max if name.endswith("memory_bytes") else operator.add
                outcome.cost[name] = joined(outcome.cost[name], value)
        return outcome


@dataclass(frozen=True)
class _Running:
    """One run of the stage."""

    stage: Rounds
    context: Context
    start: str
    seed: int

    def train(self, folder: Path, data: Rows) -> Path:
        """Train the start on the data so far; return the folder of the result."""
        done = folder / "trained"
        done.mkdir(exist_ok=True)
        if not (done / REPORT).is_file():
            model = self.context.load(self.start)
            outcome = train_into(done, self.context, [data], model, self.stage.train, self.seed)
            write_json(done / REPORT, outcome.cost)
        return done

    def make(self, folder: Path, number: int, seeds: Rows, trained: Path | None) -> None:
        """Make a round's rows with the model that was trained for it, or with the start."""
        model = self.context.load(self.start) if trained is None else self._load(trained)
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        made = make(self.stage.method, seeds, model, seed, self.context)
        write_json(folder / REPORT, made.counts)
        write_rows(folder / DATA_FILE, made.rows)

    def _load(self, trained: Path) -> Model:
        if (trained / "model").is_dir():
            return load_model(trained / "model")
        model = self.context.load(self.start)
        read_delta(trained / "delta").apply(model, keep=False)
        return model
