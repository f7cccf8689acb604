"""Supervised fine-tuning: write what the data's assistant wrote."""

from __future__ import annotations

from typing import ClassVar

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.signals.forward import document_sums, summed_logprobs
from temper.signals.setup import Setup


class TokenLoss(Target):
    """Weighted negative log-likelihood: L = -sum_t w_t log p(x_t | x_<t) / sum_t w_t, over the whole batch.

    What inherits from it and returns another loss says so: `is_sum = False`.
    """

    is_sum: ClassVar[bool] = True

    def __init__(self, model: Model) -> None:
        self.model = model

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        total, logprobs_N = summed_logprobs(self.model, batch, -batch.weights_N)
        sums_B = document_sums(-logprobs_N * batch.weights_N, batch)
        weights_B = document_sums(batch.weights_N, batch)
        return Loss(total, sums_B / weights_B.clamp(min=1e-9))


class SupervisedFineTuning(Objective, name="sft"):
    """Maximise the likelihood of the response given the prompt.

    L = -sum_t w_t log p(x_t | x_<t) / sum_t w_t. The weight w_t is 1 on what the assistant writes (its end of
    turn included) and 0 elsewhere, unless messages or spans carry weights of their own.

    Paper: Training language models to follow instructions with human feedback, arXiv:2203.02155 (its first step).
    """

    works_on_pieces: ClassVar[bool] = True
    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion", "text"})

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(encoder.supervised(row),)]

    def build(self, model: Model, setup: Setup) -> TokenLoss:
        return TokenLoss(model)
