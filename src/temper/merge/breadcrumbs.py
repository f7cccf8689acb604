"""Model Breadcrumbs: neither the largest nor the smallest changes."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from temper.core.errors import SettingError
from temper.merge.sparse import MaskSignScale, Rescale, keep_ranked, rescaled


class Breadcrumbs(MaskSignScale, name="breadcrumbs"):
    """Mask the outliers and the negligible entries of each change, tensor by tensor, and add up the rest.

        theta = theta_base + alpha * sum_i m_i^{beta, gamma} * tau_i

    m_i is zero for the share `gamma` of the largest magnitudes and for the smallest ones, of which so many go that
    `density` is left: beta = 1 - density - gamma. `scale` is alpha.

    Paper: Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, arXiv:2312.06795.
    Deviation: models may have weights; `elect` elects signs as in TIES.
    """

    density: float = Field(0.9, gt=0, le=1, description="share of each tensor's entries that is kept")
    gamma: float = Field(0.01, ge=0, lt=1, description="share of each tensor's entries that are outliers, and go")
    rescale: Rescale = Field("none", description="density: divide by it; l1: keep the sum of magnitudes; none")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        # 0.9 + 0.1 may be a little above 1.
        if self.density + self.gamma > 1 + 1e-9:
            raise SettingError(
                "gamma", self.gamma, f"leaves less than the density of {self.density}", "lower gamma or the density"
            )
        return self

    @property
    def keeps_one_model(self) -> bool:
        return self.density == 1 and super().keeps_one_model

    def masked(self, delta: Tensor, name: str, number: int) -> Tensor:
        num_kept = int(self.density * delta.numel())
        num_outliers = int(self.gamma * delta.numel())
        first = max(0, delta.numel() - num_kept - num_outliers)
        return rescaled(keep_ranked(delta, first, first + num_kept), delta, self.rescale, self.density)
