"""A run on disk with finished stages, as a later stage sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from families import tiny
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split
from temper.delta import Delta
from temper.models.load import load_model, save_model
from temper.models.model import Model


@dataclass
class FinishedRun:
    """The context of a stage whose recipe's base is a tiny model of a family."""

    root: Path
    family: str = "llama"
    settings: dict[str, Any] = field(default_factory=dict)
    """of the base"""
    name: str = "now"
    seed: int = 0
    on_bad_rows: OnBadRows = "stop"
    said: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    stages: dict[str, tuple[Delta | Model, str]] = field(default_factory=dict)
    """what each stage made, from which other's model"""

    @property
    def folder(self) -> Path:
        path = self.root / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def finish(self, stage: str, made: Delta | Model, start: str = "base") -> None:
        """Leave what a stage leaves: whole weights, or a change to the model of `start`."""
        self.stages[stage] = (made, start)
        folder = self.root / stage
        folder.mkdir(parents=True)
        if isinstance(made, Model):
            save_model(made, folder / "model")
        else:
            made.save(folder / "delta")
        (folder / "stage.json").write_text(json.dumps({"name": stage, "models": [start]}))

    def load(self, stage: str) -> Model:
        self.loaded.append(stage)
        return self._make(stage)

    def _make(self, stage: str) -> Model:
        if stage == "base":
            return tiny(self.family, **self.settings)
        made, start = self.stages[stage]
        if isinstance(made, Model):
            return load_model(self.root / stage / "model")
        model = self._make(start)
        made.apply(model)
        return model

    def artifact(self, stage: str) -> Path | None:
        return None if stage == "base" else self.root / stage

    def open(self, source: Source, split: Split = "train") -> Rows:
        raise AssertionError("no data is read")

    def say(self, text: str) -> None:
        self.said.append(text)
