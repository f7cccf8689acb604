"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from temper.core.errors import MissingExtra, SettingError
from temper.engine.trackers.base import Tracker, Tracking


class _Tracking(Tracking):
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class WeightsAndBiases(Tracker, name="wandb"):
    """Send the numbers to Weights & Biases, one run for each stage.

    Source: https://docs.wandb.ai
    """

    extra: ClassVar[str] = "wandb"

    example: ClassVar[dict[str, Any]] = {"mode": "offline"}

    project: str = Field("temper", description="project that the run belongs to")
    mode: Literal["online", "offline"] = Field("online", description="offline writes to the stage's folder only")

    def open(self, stage: str, folder: Path) -> Tracking:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", self.extra, "track: wandb") from error
        # The folder's name holds the stage's hash, so a continued stage continues its run.
        try:
            run = wandb.init(
                project=self.project, name=stage, id=folder.name, dir=folder, resume="allow", mode=self.mode
            )
        except wandb.Error as error:
            fix = "run `wandb login`, or set it to offline"
            raise SettingError("track.wandb.mode", self.mode, f"cannot begin a run ({error})", fix) from error
        return _Tracking(run)
