"""PiSSA: the update starts in the matrix' largest singular directions.

Legend: R rank, I input features, O output features, K directions looked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.init.base import LowRankInit, Start, Wanted

SPARE = 8
"""directions that the fast decomposition looks for beyond the rank"""


class PiSSA(LowRankInit, name="pissa"):
    """Train the r largest singular components of each matrix, and freeze the rest of it.

    W = U S V^T;  A = S_r^1/2 V_r^T,  B = U_r S_r^1/2, of the r largest;  W_res = W - B A stays frozen.

    Paper: PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models,
    arXiv:2404.02948.
    Symbols: r is LoRA's `rank`; alpha / r divides B A, as in PEFT. `iterations` is the fast decomposition's number of
    iterations (Halko et al., arXiv:0909.4061). Deviation: W is left alone and the start's B A is taken off beside it,
    which is the same sum and leaves the base as it was; saved, the rank is 2 r.
    """

    iterations: int | None = Field(
        None, ge=0, le=64, description="of a fast, random decomposition, such as 4 or 16; null for an exact one"
    )

    def start(
        self, model: Model, wanted: Sequence[Wanted], generator: torch.Generator, calibration: Calibration | None
    ) -> Sequence[Start]:
        starts = []
        for each in wanted:
            weight_OI = part_weight(model.module, each.part).detach().float()
            u_OR, s_R, vh_RI = self._largest(weight_OI, each.rank, generator)
            root_R = (s_R / each.scaling).sqrt()
            starts.append(Start((root_R[:, None] * vh_RI).cpu(), (u_OR * root_R).cpu()))
        return starts

    def _largest(self, weight_OI: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the largest singular directions and values."""
        num_found = min(rank + SPARE, *weight_OI.shape)
        if self.iterations is None or num_found == min(weight_OI.shape):
            u_OK, s_K, vh_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        else:
            seen_IK = torch.randn(weight_OI.shape[1], num_found, generator=generator).to(weight_OI)
            range_OK = torch.linalg.qr(weight_OI @ seen_IK).Q
            for _ in range(self.iterations):
                range_OK = torch.linalg.qr(weight_OI @ torch.linalg.qr(weight_OI.T @ range_OK).Q).Q
            left_KK, s_K, vh_KI = torch.linalg.svd(range_OK.T @ weight_OI, full_matrices=False)
            u_OK = range_OK @ left_KK
        return u_OK[:, :rank], s_K[:rank], vh_KI[:rank]
