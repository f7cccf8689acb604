"""The projection with its softmax against the naive one, forward and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from temper.signals import head
from temper.signals.head import Logprobs, SummedLogprobs


def naive(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float) -> Tensor:
    logits_NV = (hidden_ND.double() * scale) @ weight_VD.double().t()
    return logits_NV.log_softmax(1)[torch.arange(len(targets_N)), targets_N]


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num", "vocabulary", "chunk"), [(1, 7, 1), (1, 97, 100), (33, 97, 8), (33, 101, 33), (40, 2, 7), (65, 1031, 64)]
)
def test_values_and_gradients(
    num: int, vocabulary: int, chunk: int, dtype: torch.dtype, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "KEPT_VALUES", 10**9 if is_kept else 0)
    monkeypatch.setattr(head, "SOFTMAX_VALUES", 3 * vocabulary)
    monkeypatch.setattr(head, "PRODUCT_VALUES", 40 * 24)  # words of 24 features
    torch.manual_seed(num)
    hidden, weight = torch.randn(num, 24), torch.randn(vocabulary, 24)
    targets, upstream = torch.randint(vocabulary, (num,)), torch.randn(num)
    # What bf16 is given is what it can hold, so only its own sums and roundings differ.
    hidden, weight = (one.to(dtype).float() for one in (hidden, weight))
    found, expected = [], []
    for kind, results in ((dtype, found), (None, expected)):
        hidden_ND, weight_VD = (one.clone().requires_grad_() for one in (hidden, weight))
        if kind is None:
            value_N = naive(hidden_ND, weight_VD, targets, 0.5)
        else:
            value_N = Logprobs.apply(hidden_ND, weight_VD, targets, 0.5, chunk, kind)
            assert value_N.dtype == torch.float32
        results += [value_N, *torch.autograd.grad((value_N * upstream).sum(), (hidden_ND, weight_VD))]
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    for one, other in zip(found, expected, strict=True):
        # bf16 rounds each term to 1 in 256; the largest result bounds the terms.
        assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num", "vocabulary", "chunk"), [(1, 7, 1), (33, 97, 8), (33, 101, 33), (40, 2, 7)])
def test_the_sum_and_its_gradients(
    num: int, vocabulary: int, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "SOFTMAX_VALUES", 3 * vocabulary)
    monkeypatch.setattr(head, "PRODUCT_VALUES", 40 * 24)  # words of 24 features
    torch.manual_seed(num)
    hidden, weight = (torch.randn(size, 24).to(dtype).float() for size in (num, vocabulary))
    targets, counts = torch.randint(vocabulary, (num,)), torch.randn(num)
    counts[::3] = 0
    leaves, exact = ([one.clone().requires_grad_() for one in (hidden, weight)] for _ in range(2))
    total, logprobs_N = SummedLogprobs.apply(*leaves, targets, counts, 0.5, chunk, dtype)
    expected_N = naive(*exact, targets, 0.5)
    expected = (expected_N * counts).sum()
    assert total.dtype == logprobs_N.dtype == torch.float32 and not logprobs_N.requires_grad
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    assert float((logprobs_N - expected_N).abs().max()) <= tolerance * float(expected_N.abs().max())
    assert float((total - expected).abs()) <= tolerance * float((expected_N * counts).abs().sum())
    wanted = torch.autograd.grad(expected / 7, exact)
    for one, other in zip(torch.autograd.grad(total / 7, leaves), wanted, strict=True):
        # bf16 rounds each term to 1 in 256; the largest result bounds the terms.
        assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


class _Largest(TorchDispatchMode):
    """Notes the most numbers that an operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(one.numel() for one in tree_iter(out) if isinstance(one, Tensor)), 0)
        return out


@pytest.mark.parametrize("kind", [Logprobs, SummedLogprobs])
def test_no_copy_of_a_frozen_head_is_made(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "PRODUCT_VALUES", 10 * 24)
    monkeypatch.setattr(head, "KEPT_VALUES", 0)
    hidden, weight, targets = torch.randn(12, 24, requires_grad=True), torch.randn(97, 24), torch.zeros(12).long()
    counts = () if kind is Logprobs else (torch.ones(12),)
    with _Largest() as largest:
        found = kind.apply(hidden, weight, targets, *counts, 1.0, 4, torch.bfloat16)
        (found if kind is Logprobs else found[0]).sum().backward()
    assert largest.numbers == 4 * 97 < weight.numel()  # logits of four tokens


def test_chunks_are_like_one_another() -> None:
    sizes = [[part.stop - part.start for part in head._like_parts(*case)] for case in ((0, 4), (9, 4), (4, 4), (1, 8))]
    assert sizes == [[], [3, 3, 3], [4], [1]]


def test_what_a_nearly_certain_token_has_left_to_learn_is_not_rounded_away() -> None:
    """p = 0.9990 rounds to 1 in bf16, and 1 - p to 0; p - 1 rounds to three digits."""
    hidden, weight = torch.eye(1, 4, requires_grad=True), torch.zeros(12, 4)
    weight[:, 0] = torch.tensor([9.3125, *[0.0] * 11])
    value = Logprobs.apply(hidden, weight, torch.tensor([0]), 1.0, 1, torch.bfloat16)
    (found,) = torch.autograd.grad(value.sum(), hidden)
    left = 1 - torch.softmax(weight[:, 0].double(), 0)[0]
    assert 0.0009 < left < 0.0011
    # One rounding of the slope and one of the product to bf16, 1 in 256 each.
    assert float(found[0, 0]) == pytest.approx(float(left) * 9.3125, rel=2**-7)


def test_a_second_pass_backward_through_the_sum_is_an_error() -> None:
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    total, _ = SummedLogprobs.apply(hidden, weight, torch.arange(5), torch.ones(5), 1.0, 2, torch.float32)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_frozen_weight_gets_no_gradient_and_a_model_without_gradients_keeps_nothing() -> None:
    hidden, weight, targets = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8), torch.arange(5)
    value = Logprobs.apply(hidden, weight, targets, 1.0, 2, torch.float32)
    value.sum().backward()
    assert weight.grad is None and hidden.grad is not None
    with torch.no_grad():
        assert not Logprobs.apply(hidden, weight, targets, 1.0, 2, torch.float32).requires_grad
