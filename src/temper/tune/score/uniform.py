"""Every block matters as much as any other."""

from __future__ import annotations

from collections.abc import Sequence

from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.score.base import BlockScore


class Uniform(BlockScore, name="uniform"):
    """1 for each block.

    Paper: LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning, arXiv:2403.17919.
    """

    def scores(self, model: Model, calibration: Calibration | None) -> Sequence[float]:
        return [1.0] * len(model.anatomy.blocks)
