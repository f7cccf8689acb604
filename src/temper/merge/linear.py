"""Weighted means of models: the uniform soup."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, FiniteFloat
from torch import Tensor

from temper.core.errors import SettingError
from temper.merge.base import Formula
from temper.merge.weights import are_equal, check_weights, weighted_sum


class Linear(Formula, name="linear"):
    """Add the models' changes to the base, each with its weight: a uniform soup where nothing else is said.

        theta = theta_base + sum_i w_i (theta_i - theta_base)

    `weights` are the w_i, 1 / n each by default. Where they sum to 1 the base drops out and theta is the weighted
    mean of the theta_i. (`task_arithmetic` is the same sum with weights of 1.)

    Paper: Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time, arXiv:2203.05482 (the uniform soup).
    """

    weights: list[FiniteFloat] | None = Field(
        None, description="one factor for each model, in the order of `of`; 1 / n each by default"
    )
    normalize: bool = Field(False, description="divide the weights by their sum")

    @property
    def is_symmetric(self) -> bool:
        return are_equal(self.weights)

    @property
    def keeps_one_model(self) -> bool:
        return self.weights is None or self.normalize or self.weights == [1.0]

    def check(self, num_models: int) -> None:
        check_weights(self.weights, num_models)
        if self.weights is not None and self.normalize and sum(self.weights) == 0:
            raise SettingError("weights", self.weights, "sums to 0 and cannot be normalized", "set normalize: false")

    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        return weighted_sum(self.factors(len(deltas)), deltas)

    def factors(self, num_models: int) -> list[float]:
        """Return the weight of each model."""
        if self.weights is None:
            return [1 / num_models] * num_models
        total = sum(self.weights) if self.normalize else 1.0
        return [weight / total for weight in self.weights]
