"""TIES: trim small changes, elect a sign for each entry, average what agrees with it."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from temper.merge.sparse import MaskSignScale, keep_ranked


class Ties(MaskSignScale, name="ties"):
    """Trim, elect sign and merge.

    Of each tau_i the largest magnitudes are kept (trim); the sign of an entry is that of the sum over the models
    (elect); the merged change is the mean of those that have it (disjoint merge), times lambda.

        tau_m[p] = mean over {i : sgn(tau_i[p]) = gamma[p]} of tau_i[p],    gamma = sgn(sum_i tau_i)
        theta = theta_base + lambda tau_m

    `density` is k, `scale` is lambda; `weights` multiply the tau_i before the election, and the mean is weighted.

    Paper: TIES-Merging: Resolving Interference When Merging Models, arXiv:2306.01708.
    Deviation: entries are trimmed tensor by tensor and not over the whole model, as in mergekit, so that one tensor is
    held at a time.
    """

    density: float = Field(0.2, gt=0, le=1, description="k: share of each tensor's entries that is kept")
    elect: bool = Field(True, description="count an entry only where its sign is that of the weighted sum of all")
    normalize: bool = Field(True, description="divide each entry by the sum of the weights that count there")

    @property
    def keeps_one_model(self) -> bool:
        return self.density == 1 and super().keeps_one_model

    def masked(self, delta: Tensor, name: str, number: int) -> Tensor:
        num_kept = max(1, int(self.density * delta.numel()))
        return keep_ranked(delta, delta.numel() - num_kept, delta.numel())
