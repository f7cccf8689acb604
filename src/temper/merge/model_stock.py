"""Model stock: how far the mean of models is pulled to the base follows from the angle between them.

Legend: F rows of a matrix that are weighed together, or one, P entries of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from temper.merge.base import Formula

SINGULAR = 1e-6


class ModelStock(Formula, name="model_stock"):
    """Move the mean of the models towards the base, the more the wider the angle between their changes.

        theta = t mean_i theta_i + (1 - t) theta_base,    t = N cos / (1 + (N - 1) cos)

    cos is the cosine between the changes theta_i - theta_base of two of the N models, the mean over all pairs; each
    tensor has its own. Changes that agree are kept whole (t = 1), changes that have nothing in common are let go. A
    model alone comes back.

    Paper: Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522.
    Symbols: `per` is what has an angle of its own; equal to mergekit's. Deviation: a change of 0 has a cosine of 0 with
    every other; where 1 + (N - 1) cos is 0 and no t is finite, the base stays. Opposed changes have a negative t, as
    the formula gives it.
    """

    per: Literal["tensor", "row"] = Field(
        "tensor", description="what has an angle of its own: a tensor, or each row of a matrix (its filter)"
    )

    @property
    def is_symmetric(self) -> bool:
        return True

    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        if len(deltas) == 1:
            return deltas[0]
        rows = base.shape[0] if self.per == "row" and base.ndim > 1 else 1
        changes = [delta.reshape(rows, -1) for delta in deltas]
        cosine_F1 = _mean_cosine(changes)
        divisor_F1 = 1 + (len(changes) - 1) * cosine_F1
        is_singular_F1 = divisor_F1.abs() < SINGULAR
        share_F1 = len(changes) * cosine_F1 / divisor_F1.masked_fill(is_singular_F1, 1.0)
        mean_FP = sum(changes[1:], changes[0]) / len(changes)
        return (share_F1.masked_fill(is_singular_F1, 0.0) * mean_FP).reshape(base.shape)


def _mean_cosine(changes: Sequence[Tensor]) -> Tensor:
    """Return the mean over pairs of the cosine of each row, (F, 1)."""
    norms = [change.norm(dim=1, keepdim=True) for change in changes]
    cosines = []
    for (one_FP, its_F1), (other_FP, others_F1) in combinations(zip(changes, norms, strict=True), 2):
        norm_F1 = its_F1 * others_F1
        product_F1 = (one_FP * other_FP).sum(1, keepdim=True)
        cosines.append(torch.where(norm_F1 > 0, product_F1 / norm_F1, 0.0).clamp(-1, 1))
    return torch.stack(cosines).mean(0)
