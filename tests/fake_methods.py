"""Stages, suites and retention that do next to nothing, for tests of what is around them.

They are not registered: `known_fakes` makes them known for a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field

from temper.core.errors import TrainingError
from temper.data.example import Origin, Row
from temper.data.rows import write_file
from temper.data.source import Source
from temper.data.sources.stage import DATA_FILE
from temper.measure.base import Score, Subject, Suite
from temper.models.load import save_model
from temper.stages.base import Context, Outcome, Stage


class FakeTrain(Stage, name="fake_train"):
    """Adds a number to one weight, and notes that it was called."""

    amount: float = Field(1.0, description="what is added")
    data: tuple[Source, ...] = Field((), description="read and counted")
    from_stage: str | None = Field(None, alias="from", description="where it starts")
    calls: Path = Field(description="file that gets a line for each call")
    fails_while: Path | None = Field(None, description="fail while this file is there")
    add_from: Path | None = Field(None, description="add the number in this file, too, which no key knows of")

    def models(self, previous: str) -> Sequence[str]:
        return (self.from_stage or previous,)

    def sources(self) -> Sequence[Source]:
        return self.data

    def run(self, context: Context, previous: str) -> Outcome:
        with self.calls.open("a") as file:
            file.write(f"{context.name}\n")
        if self.fails_while is not None and self.fails_while.exists():
            raise TrainingError("the loss is not a number; lower lr")
        rows = sum(len(context.open(source)) for source in self.data)
        model = context.load(*self.models(previous))
        hidden = float(self.add_from.read_text()) if self.add_from is not None else 0.0
        with torch.no_grad():
            weight(model.module).add_(self.amount + hidden)
        save_model(model, context.folder / "model")
        return Outcome(cost={"steps": 1.0}, details={"rows": rows, "dtype": "float32"}, warnings=["it is a fake"])


class FakeSelect(Stage, name="fake_select"):
    """Makes rows."""

    produces: ClassVar[Literal["model", "data", "files"]] = "data"

    num: int = Field(3, description="rows")
    calls: Path = Field(description="file that gets a line for each call")

    def models(self, previous: str) -> Sequence[str]:
        return ()

    def run(self, context: Context, previous: str) -> Outcome:
        with self.calls.open("a") as file:
            file.write(f"{context.name}\n")
        rows = [Row("text", {"text": f"row {number}"}, {}, Origin("made", number)) for number in range(self.num)]
        write_file(context.folder / DATA_FILE, rows)
        return Outcome(details={"rows": self.num})


class FakeSuite(Suite, name="fake_suite"):
    """The weight that `FakeTrain` changes, as a number for each of four examples."""

    higher_is_better: bool = Field(True, description="which way is up")
    calls: Path | None = Field(None, description="file that gets a line for each call")

    @property
    def default_label(self) -> str:
        return "weight"

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        if self.calls is not None:
            with self.calls.open("a") as file:
                file.write(f"{self.label}\n")
        value = float(weight(subject.model.module))
        return Score("weight", self.higher_is_better, tuple(value + 0.01 * n for n in range(4)), unit="number")


def weight(module: torch.nn.Module) -> torch.Tensor:
    """Return the one number that the fakes change."""
    return next(module.parameters()).detach().view(-1)[0]


FAKES = (FakeTrain, FakeSelect, FakeSuite)
for _fake in FAKES:
    del _fake._registered[_fake.method_name]


@pytest.fixture
def known_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fakes known to recipes."""
    for fake in FAKES:
        monkeypatch.setitem(fake._registered, fake.method_name, fake)
