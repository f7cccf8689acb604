"""The product mask x sign x scale of which task arithmetic, TIES, DARE and Breadcrumbs are points.

    theta = theta_base + lambda * sum_i w_i e_i * s(m_i * tau_i) / z,    tau_i = theta_i - theta_base

- m_i, a mask of each model's change, tensor by tensor: which entries count. Methods differ in this.
- s, a rescaling of what the mask leaves.
- e_i, one where w_i tau_i has the sign that was elected for the entry (that of the sum over the models), zero where it
  has not; or one everywhere.
- z, the sum of the weights that count at the entry; or one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from temper.core.errors import SettingError
from temper.merge.base import Formula
from temper.merge.weights import are_equal, check_weights

Rescale = Literal["none", "density", "l1"]


class MaskSignScale(Formula):
    """The settings that all points of the product share."""

    weights: list[FiniteFloat] | None = Field(
        None, description="w_i: one factor for each model, in the order of `of`; 1 each by default"
    )
    scale: FiniteFloat = Field(1.0, description="lambda: factor of the merged change")
    elect: bool = Field(False, description="count an entry only where its sign is that of the weighted sum of all")
    normalize: bool = Field(False, description="divide each entry by the sum of the weights that count there")

    @property
    def is_symmetric(self) -> bool:
        return are_equal(self.weights)

    @property
    def keeps_one_model(self) -> bool:
        return self.scale == 1 and (self.normalize or self.weights in (None, [1.0]))

    def check(self, num_models: int) -> None:
        check_weights(self.weights, num_models)
        if self.weights is not None and self.normalize and sum(self.weights) == 0:
            raise SettingError("weights", self.weights, "sums to 0 and cannot be normalized", "set normalize: false")

    def masked(self, delta: Tensor, name: str, number: int) -> Tensor:
        """Return one model's change with only the entries that count, rescaled.

        Args:
            delta: the change of one parameter.
            name: the parameter's.
            number: the model's place in `of`.
        """
        return delta

    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        factors = self.weights or [1.0] * len(deltas)
        parts = [
            self.masked(delta, name, number) * factor
            for number, (delta, factor) in enumerate(zip(deltas, factors, strict=True))
        ]
        if not self.elect:
            total = _total(parts)
            return total * (self.scale / sum(factors)) if self.normalize else total * self.scale
        # An entry whose sum is exactly 0 counts as positive.
        is_positive = _total(parts) >= 0
        counts = [(part > 0) & is_positive | (part < 0) & ~is_positive for part in parts]
        total = _total([part * count for part, count in zip(parts, counts, strict=True)])
        if self.normalize:
            divisor = _total([count * factor for count, factor in zip(counts, factors, strict=True)])
            total = total / torch.where(divisor == 0, torch.ones_like(divisor), divisor)
        return total * self.scale


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def keep_ranked(delta: Tensor, first: int, last: int) -> Tensor:
    """Return the change with only the entries whose rank by magnitude, smallest first, lies in [first, last)."""
    flat = delta.reshape(-1)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.abs().argsort(stable=True)[first:last]] = True
    return torch.where(mask, flat, torch.zeros_like(flat)).reshape(delta.shape)


def rescaled(masked: Tensor, delta: Tensor, how: Rescale, density: float) -> Tensor:
    """Return what a mask left, scaled up for what it took.

    Args:
        masked: the masked change.
        delta: the whole one.
        how: `density`: times 1 / density, which keeps the expectation of a random mask; `l1`: to the sum of
            magnitudes that the whole had; `none`.
        density: share of the entries that the mask keeps.
    """
    if how == "none":
        return masked
    if how == "density":
        return masked / density
    before, after = delta.abs().sum(), masked.abs().sum()
    return masked * (before / after) if after > 0 else masked
