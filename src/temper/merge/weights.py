"""One factor for each model: what most methods of merging begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from temper.core.errors import SettingError


def check_weights(weights: Sequence[float] | None, num_models: int) -> None:
    """Raise SettingError where there is not one weight for each model."""
    if weights is not None and len(weights) != num_models:
        raise SettingError(
            "weights", list(weights), f"has {len(weights)} factors for {num_models} models", "give one for each"
        )


def are_equal(weights: Sequence[float] | None) -> bool:
    """Tell whether all models count alike."""
    return weights is None or len(set(weights)) == 1


def weighted_sum(factors: Sequence[float], deltas: Sequence[Tensor]) -> Tensor:
    """Return sum_i factor_i delta_i; the deltas are left as they are."""
    merged = torch.zeros_like(deltas[0])
    for factor, delta in zip(factors, deltas, strict=True):
        merged.add_(delta, alpha=factor)
    return merged
