"""DCO: learn that one of N tries is right, and not that every one is.

Legend: N supervised tokens, B documents.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.signals.forward import document_sums, token_logprobs
from temper.signals.setup import Setup

RARE = -60.0
"""log p below which 1 - (1 - p)^N is N p to float32's rounding, whatever N; p itself soon is none there"""


class CoverageTarget(Target):
    """The model and how often it may try."""

    def __init__(self, model: Model, num_tries: float) -> None:
        self.model, self.num_tries = model, num_tries

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        logp_B = document_sums(token_logprobs(self.model, batch) * batch.weights_N, batch)
        loss_B = -log_coverage(logp_B, self.num_tries)
        return Loss(loss_B.sum(), loss_B.detach(), {"nll": -float(logp_B.detach().sum())})


class DirectCoverageOptimization(Objective, name="dco"):
    """Maximise the probability that at least one of N independent answers is the data's.

    L = -log(1 - (1 - p(y|x))^N), the mean over answers, with log p(y|x) = sum_t w_t log p(y_t | x, y_<t). Its gradient
    is that of -log p(y|x) times N p (1 - p)^(N-1) / (1 - (1 - p)^N), which is 1 where p is small and falls to 0 where
    it is not: an answer that is likely enough for N tries is let alone, and confidence is limited. N = 1 is the
    likelihood of whole answers.

    Paper: Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning,
    arXiv:2502.07154.
    Symbols: N is `tries`; w_t are the loss weights of the data, 1 in the paper. `nll` in the metrics is -log p(y|x).
    Deviation: the whole response is y; the paper's forms for proofs by steps and for answers after a drawn chain of
    thought are not offered.
    """

    works_on_pieces: ClassVar[bool] = True
    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion", "text"})

    tries: float = Field(16.0, ge=1, description="N: answers that are drawn at the end; the larger, the less confident")

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(encoder.supervised(row),)]

    def units(self, batch: Batch) -> float:
        return float(batch.num_documents)

    def build(self, model: Model, setup: Setup) -> CoverageTarget:
        return CoverageTarget(model, self.tries)


def log_coverage(logp_B: Tensor, num_tries: float) -> Tensor:
    """Return log(1 - (1 - p)^N), float32; a p that rounds to 1 counts as the largest float below it."""
    if num_tries == 1:
        return logp_B
    inside_B = logp_B.clamp(min=RARE, max=-torch.finfo(logp_B.dtype).eps)
    exact_B = _log1mexp(num_tries * _log1mexp(inside_B))
    return torch.where(logp_B < RARE, logp_B + math.log(num_tries), exact_B)


def _log1mexp(value_B: Tensor) -> Tensor:
    """Return log(1 - e^value) of values below 0, without cancellation (both branches stay finite)."""
    near_zero_B = torch.log(-torch.expm1(value_B.clamp(min=-1.0)))
    far_B = torch.log1p(-torch.exp(value_B.clamp(max=-0.5)))
    return torch.where(value_B > -math.log(2), near_zero_B, far_B)
