"""CorDA: the update starts in the part of the weight that matters most, or least, for given inputs.

Legend: R rank, I input features, O output features, K smaller of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from temper.core.errors import TrainingError
from temper.data.source import OneOrMore
from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.signals.calibration import Calibration, Covariance, shared_inputs
from temper.tune.init.base import LowRankInit, Start, Wanted

DAMPING, MOST_DAMPING, LARGEST_ERROR = 0.01, 1e4, 0.05


class CorDA(LowRankInit, name="corda"):
    """Split the weight by the covariance of its inputs and train one part of it.

    C = X X^T of the calibration rows; SVD(W C) = U S V^T; W = U S V^T C^-1. The update starts as B = U sqrt(S),
    A = sqrt(S) V^T C^-1 of r components, and W' = W - B A stays frozen: the r smallest (`mode: keep`, the paper's
    knowledge-preserved adaptation, with rows `of` what is to be kept), or the r largest (`mode: learn`, instruction-
    previewed, with the training rows). C is damped (a share of its mean diagonal, doubled) until C C^-1 = 1.

    Paper: CorDA: Context-Oriented Decomposition Adaptation of Large Language Models, arXiv:2406.05223.
    Symbols: r is LoRA's `rank`; alpha / r divides B A, as in PEFT. Deviation: W is left alone and the start's B A is
    taken off beside it, which is the same sum and leaves the base as it was; saved, the rank is 2 r.
    """

    mode: Literal["keep", "learn"] = Field(
        "keep", description="train what matters least for the rows (keep) or most (learn)"
    )
    of: OneOrMore = Field((), description="calibration rows: a source or several; the training rows if none")
    examples: PositiveInt = Field(256, description="rows that are looked at, at most")

    def calibration(self, model: Model, wanted: Sequence[Wanted]) -> Calibration:
        shared = shared_inputs(model.anatomy)
        paths = dict.fromkeys(shared[each.part.path] for each in wanted)
        return Calibration({path: Covariance() for path in paths}, self.of, self.examples)

    def start(
        self, model: Model, wanted: Sequence[Wanted], generator: torch.Generator, calibration: Calibration | None
    ) -> Sequence[Start]:
        assert calibration is not None
        shared = shared_inputs(model.anatomy)
        starts = []
        for each in wanted:
            statistic = calibration.statistics[shared[each.part.path]]
            assert isinstance(statistic, Covariance)
            if calibration.has_numbers:
                damped_II, inverse_II = _inverted(statistic.mean_II, each.part.path)
            else:
                damped_II = inverse_II = torch.eye(each.part.in_features)
            weight_OI = part_weight(model.module, each.part).detach().float()
            u_OK, s_K, vh_KI = torch.linalg.svd(weight_OI @ damped_II, full_matrices=False)
            chosen = slice(-each.rank, None) if self.mode == "keep" else slice(each.rank)
            root_R = (s_K[chosen] / each.scaling).sqrt()
            a_RI, b_OR = root_R[:, None] * (vh_KI[chosen] @ inverse_II), u_OK[:, chosen] * root_R
            starts.append(Start(a_RI.cpu(), b_OR.cpu()))
        return starts


def _inverted(covariance_II: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """Return a covariance, damped as much as it needs, and its inverse."""
    identity_II, damping = torch.eye(len(covariance_II), device=covariance_II.device), DAMPING
    while damping < MOST_DAMPING:
        damped_II = covariance_II + identity_II * covariance_II.diag().mean() * damping
        inverse_II = torch.linalg.inv(damped_II)
        if torch.dist(damped_II @ inverse_II, identity_II) < LARGEST_ERROR:
            return damped_II, inverse_II
        damping *= 2
    raise TrainingError(f"{path}: the covariance of its inputs cannot be inverted; calibrate on more or other rows")
