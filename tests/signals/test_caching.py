"""Gradient caching: a function of the whole step has the same gradient however the step is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from temper.signals.caching import carry, slopes_of


def spread(tensors: list[Tensor]) -> Tensor:
    """A function that no sum over micro-batches gives: of all rows of both tensors together."""
    one, other = tensors
    return one.var() / one.mean().square() + (one.sum(1) @ other.sum(1).softmax(0)).square()


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 2, 4]])
def test_value_and_gradient_are_those_of_the_function_in_one_piece(cuts: list[int]) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, dtype=torch.float64, generator=draw).requires_grad_()
    x = torch.randn(7, 5, dtype=torch.float64, generator=draw)

    def made(rows: Tensor) -> list[Tensor]:
        return [rows @ weight, (rows @ weight).square()]

    whole = spread(made(x))
    (expected,) = torch.autograd.grad(whole, weight)
    pieces = x.split(cuts)
    with torch.no_grad():
        ahead = [made(piece) for piece in pieces]
    value, slopes = slopes_of(spread, ahead)
    assert not value.requires_grad and value == pytest.approx(float(whole.detach()), rel=1e-12)
    found = torch.zeros_like(weight)
    for piece, own, was in zip(pieces, slopes, ahead, strict=True):
        told = carry(made(piece), own, value / len(pieces), was)
        assert float(told.detach()) == float(value / len(pieces)), "exactly, so that what is logged is the value"
        found += torch.autograd.grad(told, weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_without_gradients_the_number_follows_the_slopes() -> None:
    """What a zeroth-order optimizer sees: the difference between two sides is the gradient along the direction."""
    draw = torch.Generator().manual_seed(1)
    weight, direction = (torch.randn(5, 3, dtype=torch.float64, generator=draw) for _ in range(2))
    x = torch.randn(7, 5, dtype=torch.float64, generator=draw)

    def made(rows: Tensor, at: Tensor) -> list[Tensor]:
        return [rows @ at, (rows @ at).square()]

    tracked = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(spread(made(x, tracked)), tracked)
    pieces, eps = x.split([3, 4]), 1e-5
    ahead = [made(piece, weight) for piece in pieces]
    value, slopes = slopes_of(spread, ahead)

    def told(at: Tensor) -> float:
        with torch.no_grad():
            parts = zip(pieces, slopes, ahead, strict=True)
            return sum(float(carry(made(piece, at), own, value / 2, was)) for piece, own, was in parts)

    assert told(weight) == pytest.approx(float(value), rel=1e-12)
    found = (told(weight + eps * direction) - told(weight - eps * direction)) / (2 * eps)
    assert found == pytest.approx(float((gradient * direction).sum()), rel=1e-6)
