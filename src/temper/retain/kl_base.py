"""KL to the base: what the model says stays near what it said before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt
from torch import Tensor

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.example import Example
from temper.data.pack import Batch, pack
from temper.data.source import OneOrMore
from temper.models.model import Model
from temper.retain.base import Retain, Retention
from temper.signals.divergence import compare, kl
from temper.signals.passes import Pass
from temper.signals.reference import START, Reference, check_same_vocabulary
from temper.signals.setup import Setup

POOL = 4096
"""rows of named data that are held, from which each step draws"""


class NearReference(Retention):
    """The penalty at work: on each micro-batch, or on rows drawn for each step."""

    def __init__(
        self, model: Model, method: KLToBase, reference: Reference, pool: Sequence[Example], setup: Setup
    ) -> None:
        self.model, self.method, self.reference, self.pool = model, method, reference, pool
        self.computing, self.seed = setup.computing, setup.seed
        self.num_tokens = 0

    def before_batches(self, batches: Sequence[Batch], moment: Moment) -> None:
        self.num_tokens = sum(batch.num_supervised for batch in batches)
        if not self.num_tokens:
            raise SettingError(
                "retain",
                "kl_base",
                "finds nothing supervised in this batch, so there is no token to stay near at (the objective predicts "
                "no tokens)",
                "leave kl_base out",
            )

    def batch_penalty(self, batch: Batch, moment: Moment) -> Tensor | None:
        return None if self.pool else self._total(batch) / self.num_tokens

    def penalty(self, moment: Moment) -> Tensor | None:
        if not self.pool:
            return None
        batch = self._drawn(moment).to(next(self.model.module.parameters()).device)
        with self.computing():
            return self._total(batch) / batch.num_supervised

    def further_passes(self, batches: Sequence[Batch], moment: Moment) -> list[Pass]:
        compared = [self._drawn(moment)] if self.pool else batches
        theirs = [Pass(self.reference.model, batch, heads=2) for batch in compared]
        return [*theirs, *(Pass(self.model, batch, trains=True) for batch in compared)]

    def _drawn(self, moment: Moment) -> Batch:
        # By seed and step alone, so that a resumed run draws the same.
        generator = np.random.default_rng([self.seed, moment.step])
        drawn = generator.choice(len(self.pool), min(self.method.examples, len(self.pool)), replace=False)
        return pack([self.pool[index] for index in drawn])

    def _total(self, batch: Batch) -> Tensor:
        def of_chunk(ours_CV: Tensor, theirs_CV: Tensor, targets_C: Tensor) -> Tensor:
            return kl(theirs_CV, ours_CV) if self.method.direction == "forward" else kl(ours_CV, theirs_CV)

        return self.method.strength * compare(self.model, self.reference, batch, of_chunk).sum()


class KLToBase(Retain, name="kl_base"):
    """Add lambda * mean over supervised tokens of KL(p_0 || p) to the objective, p_0 being the model before the stage.

    The tokens are those of the training batch, or of `examples` rows of named data drawn anew for each step. The
    `forward` direction is the distillation of the old model into the new one; `reverse`, KL(p || p_0), is the
    penalty of learning from human feedback.

    Paper: Learning without Forgetting, arXiv:1606.09282 (forward); Fine-Tuning Language Models from Human
    Preferences, arXiv:1909.08593 (reverse). Symbols: lambda is `strength`, p_0 is `reference`.
    Deviation: the divergence is over the whole vocabulary at given text, without temperature, and not estimated
    from samples. On the training batch it costs a second forward and backward pass of the model.
    """

    of: OneOrMore = Field(
        (), description="the data on which the model stays: a source, or a list; the training batch where none is named"
    )
    strength: float = Field(0.1, ge=0, description="lambda: how strongly, per nat per token")
    direction: Literal["forward", "reverse"] = Field("forward", description="KL(p_0 || p), or KL(p || p_0)")
    examples: PositiveInt = Field(16, description="rows of the named data in each step, in one forward pass")
    reference: str = Field(
        START, description="p_0: start (the model as it was before this stage), base, or an earlier stage"
    )

    def idle(self) -> dict[str, str]:
        return {} if self.of else {"examples": "beside `of`; on the training batch, all of its rows count"}

    def models(self) -> Sequence[str]:
        return (self.reference,)

    def build(self, model: Model, setup: Setup) -> NearReference:
        pool = setup.examples(self.of, POOL) if self.of else []
        if self.of and not pool:
            raise SettingError("retain.kl_base.of", self.of, "has no row that can be used", "name other data")
        reference = setup.reference(model, self.reference)
        check_same_vocabulary(model, reference.model, "retain.kl_base.reference", self.reference)
        return NearReference(model, self, reference, pool, setup)
