"""Where a run's numbers are shown while it trains, besides `metrics.jsonl`: the axis of trackers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from temper.core.methods import Method


class Tracking(ABC):
    """A tracker at work on one stage."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's numbers."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


class Tracker(Method, axis="tracker", packages=("temper.engine.trackers",)):
    """Where are the numbers shown?"""

    @abstractmethod
    def open(self, stage: str, folder: Path) -> Tracking:
        """Begin to track a stage; `folder` is the stage's own.

        Raises:
            MissingExtra: the tracker's package is not installed.
        """
