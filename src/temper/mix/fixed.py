"""Weights that are given."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, model_validator

from temper.core.errors import SettingError
from temper.mix.base import Mix, Mixing, Sources


class Fixed(Mix, name="fixed"):
    """Draw from each source by a weight of its own: r_m = w_m / sum_n w_n.

    Source: the plainest mixture; the weights may come from any method that estimates them.
    """

    example: ClassVar[dict[str, Any]] = {"weights": [1.0, 2.0]}

    weights: tuple[NonNegativeFloat, ...] = Field(min_length=1, description="w: one for each source, in their order")

    @model_validator(mode="after")
    def _not_all_zero(self) -> Self:
        if not any(self.weights):
            raise SettingError("weights", list(self.weights), "draws from no source", "give one of them a weight")
        return self

    def build(self, sources: Sources) -> Mixing:
        if len(self.weights) != len(sources.sizes):
            reason = f"are {len(self.weights)} weights for {len(sources.sizes)} sources"
            raise SettingError("mix.fixed.weights", list(self.weights), reason, "give one for each source in `data`")
        return Mixing(np.asarray(self.weights, dtype=float))
