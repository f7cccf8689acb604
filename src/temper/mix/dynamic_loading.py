"""Dynamic batch loading: sources that lag behind their reference losses are drawn more.

Legend: S sources.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, model_validator

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.mix.base import Mix, Mixing, Sources, normalised


class DynamicLoading(Mix, name="dynamic_loading"):
    """Draw more from each source, every m steps, by how far its loss lies above a reference.

    Delta_t[i] = max(l_t[i] - l_ref[i], 0);  w_t[i] ~ w_(t-m)[i] exp(Delta_t[i]), with l_t[i] the loss of the model
    after step t on rows held out of source i. Losses then reach their references at about the same time. By default
    l_ref are the losses before the first step: then a source is drawn more as soon as the stage makes it worse.

    Paper: Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning, arXiv:2310.06694,
    algorithm 1.
    Symbols: l_ref is `references`, w_0 is `weights`, m is `every_steps`. Deviation: the paper's references are what a
    scaling law predicts, or what the model had before it was pruned. The authors' code takes l_t - l_ref below 0 as it
    is, and mixes 1e-4 of equal weights in; here it is the paper's equation. Sources are drawn in exact proportion at
    any step; the paper samples.
    """

    example: ClassVar[dict[str, Any]] = {"references": [3.0, 4.0], "every_steps": 1, "num_validation": 4}

    references: tuple[NonNegativeFloat, ...] | None = Field(
        None, description="l_ref: nats per token, one for each source, in their order; null: as before the first step"
    )
    weights: tuple[NonNegativeFloat, ...] | None = Field(
        None, description="w_0: one for each source, in their order; null: as many as it has rows"
    )
    every_steps: int = Field(50, ge=1, description="m: optimizer steps between two measurements")
    num_validation: int = Field(32, ge=1, description="rows held out of each source to measure its loss")

    @property
    def num_held_out(self) -> int:
        return self.num_validation

    @model_validator(mode="after")
    def _all_positive(self) -> Self:
        if self.weights is not None and not all(self.weights):
            reason = "has a source with weight 0, which no factor raises"
            raise SettingError("weights", list(self.weights), reason, "give it a weight, or leave the source out")
        return self

    def build(self, sources: Sources) -> LoadingMixing:
        num = len(sources.sizes)
        for name, given in (("references", self.references), ("weights", self.weights)):
            if given is not None and len(given) != num:
                reason = f"are {len(given)} {name} for {num} sources"
                key = f"mix.dynamic_loading.{name}"
                raise SettingError(key, list(given), reason, "give one for each source in `data`")
        return LoadingMixing(self, sources)


class LoadingMixing(Mixing):
    """The weights now, and the losses that are aimed at."""

    is_online = True

    def __init__(self, settings: DynamicLoading, sources: Sources) -> None:
        super().__init__(np.asarray(settings.weights or sources.sizes, dtype=float))
        self.settings, self.sources = settings, sources
        given = settings.references
        self.references_S: NDArray[np.float64] | None = None if given is None else np.asarray(given, dtype=float)

    def before_step(self, moment: Moment) -> None:
        if self.references_S is None:
            self.references_S = self.sources.losses()

    def after_step(self, moment: Moment) -> None:
        if (moment.step + 1) % self.settings.every_steps:
            return
        assert self.references_S is not None
        above_S = np.maximum(self.sources.losses() - self.references_S, 0.0)
        # The largest factor is taken out, so that a loss of a thousand nats overflows nothing.
        self.weights_S = normalised(self.weights_S * np.exp(above_S - above_S.max()))

    def state_dict(self) -> dict[str, Any]:
        references = None if self.references_S is None else self.references_S.tolist()
        return {"references": references, "weights": self.weights_S.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.references_S = None if state["references"] is None else np.asarray(state["references"])
        self.weights_S = np.asarray(state["weights"])
