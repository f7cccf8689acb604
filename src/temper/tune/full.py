"""Full fine-tuning: every number of the model moves."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import ClassVar

from pydantic import Field

from temper.core.errors import SettingError, nearest
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune
from temper.tune.subset import SubsetTuning


class Full(Tune, name="full"):
    """Train every parameter: w <- w - update(gradient). Tied embeddings are one parameter and stay tied.

    The weights are held in float32 while they train and are stored in the base's precision.

    Paper: Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146.
    """

    default_lr: ClassVar[float] = 1e-5
    works_on_pieces: ClassVar[bool] = True

    freeze: tuple[str, ...] = Field(
        (), description="parameters that stay as they are: patterns of their names, such as *embed_tokens*"
    )

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> SubsetTuning:
        names = [name for name, _ in model.module.named_parameters()]
        for pattern in self.freeze:
            if not any(fnmatch(name, pattern) for name in names):
                raise SettingError("tune.full.freeze", pattern, "matches no parameter", nearest(pattern, names))
        trained = [name for name in names if not any(fnmatch(name, pattern) for pattern in self.freeze)]
        if not trained:
            raise SettingError("tune.full.freeze", list(self.freeze), "leaves nothing to train", "freeze less")
        return SubsetTuning(model, trained)
