"""LISA: a few blocks train at a time, drawn anew every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, filled
from temper.tune.score.base import BlockScore
from temper.tune.subset import SubsetTuning, parameters_under


class LISATuning(SubsetTuning):
    """The blocks that are drawn at the moment, and everything outside of the blocks."""

    def __init__(self, model: Model, settings: LISA, scores: Sequence[float], seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.chances = np.asarray(scores) / np.sum(scores)
        self.blocks = [parameters_under(model, block.path) for block in model.anatomy.blocks]
        every = [name for name, _ in model.module.named_parameters()]
        inside = {name for block in self.blocks for name in block}
        self.outside = [name for name in every if name not in inside]
        super().__init__(model, self._drawn(0), every)

    def _drawn(self, period: int) -> list[str]:
        generator = np.random.default_rng([self.seed, period])
        drawn = generator.choice(len(self.blocks), self.settings.blocks, replace=False, p=self.chances)
        return [*self.outside, *(name for index in sorted(drawn) for name in self.blocks[index])]

    def before_step(self, moment: Moment) -> None:
        # The draw follows from the step alone, so that a resumed run needs no generator's state.
        self.activate(self._drawn(moment.step // self.settings.every_steps))


class LISA(Tune, name="lisa"):
    """Train gamma blocks at a time, drawn every K steps; embeddings, head and last norm always train.

    Blocks are drawn without replacement with chances p_l = score_l / sum(score); with the score `uniform`, p_l = 1 / N.
    A block that comes to rest keeps its weights and loses its optimizer state.

    Paper: LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning, arXiv:2403.17919.
    Symbols: gamma is `blocks`, K is `every_steps`. Deviation: weights that rest are held in float32, too.
    """

    default_lr: ClassVar[float] = 1e-5

    blocks: PositiveInt = Field(2, description="gamma, blocks that train at a time")
    every_steps: PositiveInt = Field(20, description="K, optimizer steps between draws")
    score: BlockScore = Field(
        default_factory=lambda: BlockScore.parse("uniform"), description="what a block's chance is proportional to"
    )

    def calibration(self, model: Model) -> Calibration | None:
        return self.score.calibration(model)

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> LISATuning:
        if self.score.calibration(model) is not None:
            filled(calibration, "tune.lisa.score", self.score.method_name)
        scores = self.score.scores(model, calibration)
        possible = sum(score > 0 for score in scores)
        if self.blocks > possible:
            raise SettingError(
                "tune.lisa.blocks", self.blocks, f"is more than the {possible} blocks that can be drawn", "draw fewer"
            )
        return LISATuning(model, self, scores, seed)
