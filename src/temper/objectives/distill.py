"""Distillation: say what a teacher says, over the whole vocabulary.

Legend: N supervised tokens, C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.signals.divergence import compare, kl, mixed
from temper.signals.forward import document_sums
from temper.signals.passes import Pass
from temper.signals.reference import Reference, check_same_vocabulary
from temper.signals.setup import Setup


class DistillationTarget(Target):
    """The student, the teacher and how they are compared."""

    def __init__(self, model: Model, method: Distillation, teacher: Reference) -> None:
        self.model, self.method, self.teacher = model, method, teacher

    def further_passes(self, batches: Many[Batch], moment: Moment) -> list[Pass]:
        return [Pass(self.teacher.model, batch, heads=2) for batch in batches]

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        both_N2 = compare(self.model, self.teacher, batch, self._of_chunk)
        nll_N, divergence_N = (both_N2 * batch.weights_N[:, None]).unbind(1)
        loss_N = (1 - self.method.share) * nll_N + self.method.share * divergence_N
        sums_B = document_sums(loss_N.detach(), batch)
        metrics = {"nll": float(nll_N.detach().sum()), "divergence": float(divergence_N.detach().sum())}
        return Loss(loss_N.sum(), sums_B / document_sums(batch.weights_N, batch).clamp(min=1e-9), metrics)

    def _of_chunk(self, logq_CV: Tensor, logp_CV: Tensor, targets_C: Tensor) -> Tensor:
        nll_C = -logq_CV.gather(1, targets_C[:, None])[:, 0]
        warm = self.method.temperature
        if warm != 1:
            logq_CV, logp_CV = (logq_CV / warm).log_softmax(1), (logp_CV / warm).log_softmax(1)
        return torch.stack((nll_C, warm**2 * self.method.distance(logp_CV, logq_CV)), 1)


class Distillation(Objective, name="distill"):
    """Bring the student's next-token distribution q to the teacher's p.

    L = sum_t w_t ((1 - lambda) (-log q(x_t)) + lambda T^2 D(p_T, q_T)) / sum_t w_t, p_T and q_T being p and q at
    temperature T. D is KL(p || q) (`forward`: covers all that the teacher may say), KL(q || p) (`reverse`: seeks what
    it mostly says), KL(p || alpha p + (1 - alpha) q) (`skewed`) or KL(q || (1 - alpha) p + alpha q)
    (`skewed_reverse`), whose gradients stay bounded where one of the two is near zero.

    Paper: Distilling the Knowledge in a Neural Network, arXiv:1503.02531 (forward); MiniLLM, arXiv:2306.08543
    (reverse); DistiLLM: Towards Streamlined Distillation for Large Language Models, arXiv:2402.03898 (skewed).
    Symbols: lambda is `share`, T is `temperature`, alpha is `skew`, w_t are the loss weights of the data.
    Deviation: on the data's own text, never on text that the student writes.
    """

    example: ClassVar[dict[str, Any]] = {"teacher": "start"}
    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion", "text"})

    teacher: str = Field(
        min_length=1,
        description="an earlier stage, base, start (the model as it was before this stage), or a model's folder or hub "
        "id; it must have the student's tokenizer",
    )
    divergence: Literal["forward", "reverse", "skewed", "skewed_reverse"] = Field(
        "forward", description="D: how the distance from the teacher is taken"
    )
    share: float = Field(0.5, ge=0, le=1, description="lambda: the teacher's part in the loss; the rest is the data's")
    temperature: PositiveFloat = Field(1.0, description="T: above 1, rare tokens count more")
    skew: float = Field(
        0.1, ge=0, lt=1, description="alpha: how much of its own other side is mixed in; for the skewed divergences"
    )

    def idle(self) -> dict[str, str]:
        return {} if self.is_skewed else {"skew": "where divergence is skewed or skewed_reverse"}

    @property
    def is_skewed(self) -> bool:
        """Whether alpha has a part in D."""
        return self.divergence.startswith("skewed")

    def models(self) -> Many[str]:
        return (self.teacher,)

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(encoder.supervised(row),)]

    def distance(self, logp_CV: Tensor, logq_CV: Tensor) -> Tensor:
        """Return D of the teacher's and the student's log-probabilities, (C,)."""
        skew = self.skew if self.is_skewed else 0.0
        if self.divergence in ("forward", "skewed"):
            return kl(logp_CV, mixed(logp_CV, logq_CV, skew))
        return kl(logq_CV, mixed(logq_CV, logp_CV, skew))

    def build(self, model: Model, setup: Setup) -> DistillationTarget:
        teacher = setup.reference(model, self.teacher)
        check_same_vocabulary(model, teacher.model, "objective.distill.teacher", self.teacher)
        return DistillationTarget(model, self, teacher)
