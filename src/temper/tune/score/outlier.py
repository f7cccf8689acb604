"""A block matters by its share of outliers: weights that are large, on inputs that are large.

Legend: I input features, O output features, W numbers of all parts of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt

from temper.core.errors import SettingError
from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.signals.calibration import Calibration, SquareNorm, shared_inputs
from temper.tune.score.base import BlockScore


class Outlier(BlockScore, name="outlier"):
    """D = the share of a block's weights with A > M mean(A), where A_ij = |W_ij| ||X_j||_2.

    X_j is feature j of the inputs of W over the calibration rows; the mean is the block's. As the score of `lisa`,
    blocks are drawn with chances p_l = D_l / sum(D), without replacement.

    Paper: OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM Fine-tuning,
    arXiv:2405.18380. The score itself: Outlier Weighed Layerwise Sparsity (OWL), arXiv:2310.05175.
    Symbols: M is `threshold`. OwLore's second half, the low-rank projection of the drawn blocks' gradients, is the
    optimizer `galore`.
    """

    example: ClassVar[dict[str, Any]] = {"threshold": 2.0}

    threshold: float = Field(13.0, gt=0, description="M, how many times the block's mean makes an outlier")
    examples: PositiveInt = Field(128, description="training rows that are looked at, at most")

    def calibration(self, model: Model) -> Calibration:
        paths = dict.fromkeys(shared_inputs(model.anatomy).values())
        return Calibration({path: SquareNorm() for path in paths}, num_examples=self.examples)

    def scores(self, model: Model, calibration: Calibration | None) -> Sequence[float]:
        assert calibration is not None
        if not calibration.has_numbers:  # blocks are alike, so that any draw holds as much
            return [1.0] * len(model.anatomy.blocks)
        shared, scores = shared_inputs(model.anatomy), []
        for block in model.anatomy.blocks:
            metrics = []
            for part in block.parts:
                statistic = calibration.statistics[shared[part.path]]
                assert isinstance(statistic, SquareNorm)
                metrics.append((part_weight(model.module, part).detach().float().abs() * statistic.norm_I).flatten())
            metric_W = torch.cat(metrics)
            scores.append(float((metric_W > self.threshold * metric_W.mean()).float().mean()))
        if not any(scores):
            raise SettingError(
                "score.outlier.threshold", self.threshold, "times the mean is exceeded by no weight", "try a lower one"
            )
        return scores
