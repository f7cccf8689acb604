"""TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from temper.core.errors import MissingExtra
from temper.engine.trackers.base import Tracker, Tracking


class _Tracking(Tracking):
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class TensorBoard(Tracker, name="tensorboard"):
    """Write event files into the stage's folder, for `tensorboard --logdir runs`.

    Source: https://www.tensorflow.org/tensorboard
    """

    extra: ClassVar[str] = "tensorboard"

    def open(self, stage: str, folder: Path) -> Tracking:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", self.extra, "track: tensorboard") from error
        return _Tracking(SummaryWriter(log_dir=str(folder / "tensorboard")))
