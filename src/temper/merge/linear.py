"""Weighted sums of models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from temper.core.errors import SettingError
from temper.merge.base import Merge


class Linear(Merge, name="linear"):
    """Add the models' changes to the base, each with its weight.

        theta = theta_base + sum_i w_i (theta_i - theta_base)

    Papers: Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time, arXiv:2203.05482 (equal weights that sum to 1: the default); Editing Models with Task
    Arithmetic, arXiv:2212.04089 (any weights). `weights` are the w_i. Where they sum to 1 the base drops out
    and theta is the weighted mean of the theta_i.
    """

    weights: list[FiniteFloat] | None = Field(
        None, description="one factor for each model, in the order of `of`; 1 / n each by default"
    )
    normalize: bool = Field(False, description="divide the weights by their sum")

    def check(self, num_models: int) -> None:
        if self.weights is None:
            return
        if len(self.weights) != num_models:
            raise SettingError(
                "weights", self.weights, f"has {len(self.weights)} factors for {num_models} models", "give one for each"
            )
        if self.normalize and sum(self.weights) == 0:
            raise SettingError("weights", self.weights, "sums to 0 and cannot be normalized", "set normalize: false")

    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        merged = torch.zeros_like(base)
        for weight, delta in zip(self.factors(len(deltas)), deltas, strict=True):
            merged.add_(delta, alpha=weight)
        return merged

    def factors(self, num_models: int) -> list[float]:
        """Return the weight of each model."""
        if self.weights is None:
            return [1 / num_models] * num_models
        total = sum(self.weights) if self.normalize else 1.0
        return [weight / total for weight in self.weights]
