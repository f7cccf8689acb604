"""The weighted sum against its formula."""

from __future__ import annotations

import pytest
import torch

from temper.core.errors import SettingError
from temper.merge.base import Merge
from temper.merge.linear import Linear


def tensors(count: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 7) for _ in range(count)]


def test_it_is_found_by_name() -> None:
    assert Merge.parse("linear") == Linear()
    assert Merge.parse({"linear": {"weights": [2, 1]}}) == Linear(weights=[2.0, 1.0])


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [1.0, 1.0, -1.0], [0.0, 2.0, 0.0]])
def test_it_is_the_weighted_sum_of_the_changes(weights: list[float] | None) -> None:
    base, *models = tensors(4)
    merged = base + Linear(weights=weights).combine("w", base, [model - base for model in models])
    used = weights or [1 / 3] * 3
    reference = base.double() + sum(w * (model.double() - base.double()) for w, model in zip(used, models, strict=True))
    # A sum of a few float32 values of the order of 1.
    torch.testing.assert_close(merged.double(), reference, atol=1e-6, rtol=0)
    if sum(used) == pytest.approx(1):
        mean = sum(w * model.double() for w, model in zip(used, models, strict=True))
        torch.testing.assert_close(merged.double(), mean, atol=1e-6, rtol=0)


def test_normalized_weights_give_the_weighted_mean() -> None:
    base, *models = tensors(3)
    merged = base + Linear(weights=[3, 1], normalize=True).combine("w", base, [model - base for model in models])
    torch.testing.assert_close(merged, 0.75 * models[0] + 0.25 * models[1], atol=1e-6, rtol=0)


def test_one_and_zero_is_the_first_and_inputs_stay() -> None:
    base, first, second = tensors(3)
    kept = first.clone()
    assert torch.equal(Linear(weights=[1, 0]).combine("w", base, [first, second]), first)
    assert torch.equal(first, kept)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"weights: \[1.0, 2.0\] has 2 factors for 3 models"):
        Linear(weights=[1, 2]).check(3)
    with pytest.raises(SettingError, match="sums to 0"):
        Linear(weights=[1, -1], normalize=True).check(2)
    Linear(weights=[1, -1]).check(2)
    Linear().check(5)
    with pytest.raises(ValueError, match="finite"):
        Linear(weights=[float("nan")])
