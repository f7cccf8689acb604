"""What tuners share that train low-rank matrices: which parts, of what rank and scale, where they start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt

from temper.core.errors import SettingError
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, filled
from temper.tune.init.base import LowRankInit, Start, Wanted
from temper.tune.targets import DESCRIPTION, EVERY_PART, check_patterns, matches, select_parts


class LowRankTune(Tune):
    """The settings that they share."""

    default_lr: ClassVar[float] = 2e-4
    leaves_base: ClassVar[bool] = True

    rank: PositiveInt = Field(8, description="r, the rank of each update")
    alpha: float | None = Field(None, gt=0, description="numerator of the scaling; 2 x rank where it is not given")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's inputs that is dropped in training")
    targets: tuple[str, ...] = Field(EVERY_PART, description=DESCRIPTION, min_length=1)
    ranks: Mapping[str, PositiveInt] = Field(
        default_factory=dict, description="ranks of some targets, by the same patterns; the last match counts"
    )
    rs_lora: bool = Field(False, description="divide by sqrt(rank) instead of rank")

    init: LowRankInit = Field(
        default_factory=lambda: LowRankInit.parse("kaiming"), description="where the updates start: an init method"
    )

    def calibration(self, model: Model) -> Calibration | None:
        return self.init.calibration(model, self._wanted(model))

    def started(self, model: Model, seed: int, calibration: Calibration | None) -> list[tuple[Wanted, Start]]:
        """Return the parts that get an update, each with its first factors.

        Raises:
            SettingError: a setting that does not fit this model, or a start without the calibration that it needs.
        """
        wanted = self._wanted(model)
        if self.init.calibration(model, wanted) is not None:
            filled(calibration, f"tune.{self.method_name}.init", self.init.method_name)
        starts = self.init.start(model, wanted, torch.Generator().manual_seed(seed), calibration)
        return [(each, start) for each, start in zip(wanted, starts, strict=True) if start is not None]

    def _wanted(self, model: Model) -> list[Wanted]:
        key = f"tune.{self.method_name}"
        parts = select_parts(model, self.targets, f"{key}.targets")
        check_patterns(list(model.anatomy.parts()), self.ranks, f"{key}.ranks")
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        wanted = []
        for part in parts:
            own = [rank for pattern, rank in self.ranks.items() if matches(part, pattern)]
            rank = own[-1] if own else self.rank
            if rank > min(part.in_features, part.out_features):
                raise SettingError(
                    f"{key}.ranks" if own else f"{key}.rank",
                    rank,
                    f"exceeds the smaller side of {part.path} ({part.out_features} x {part.in_features})",
                    f"try {min(part.in_features, part.out_features)} or less",
                )
            wanted.append(Wanted(part, rank, alpha / (math.sqrt(rank) if self.rs_lora else rank)))
        return wanted
