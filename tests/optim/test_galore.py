"""GaLore against its formula, around any inner optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from temper.optim.adamw import AdamW
from temper.optim.base import Optim
from temper.optim.galore import GaLore


class Descent(Optim, name="descent"):
    """Plain gradient descent."""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p for _, p in parameters], "initial_lr": lr}], lr=lr)


del Descent._registered["descent"]  # known to this file alone


def made() -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (6, 9), "tall": (11, 5), "narrow": (3, 8), "vector": (7,)}
    return [(name, nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()]


def test_it_takes_the_papers_steps() -> None:
    """Adam on P^T G (or G Q), projected back; P from G's SVD every T steps, moments kept as they are."""
    lr, (b1, b2), eps, decay, rank, every, scale = 0.1, (0.8, 0.9), 1e-6, 0.3, 3, 2, 0.25
    named = made()
    settings = GaLore(
        inner=AdamW(betas=(b1, b2), eps=eps, weight_decay=decay), rank=rank, every_steps=every, scale=scale
    )
    optimizer = settings.build(named, lr)
    expected = {name: p.detach().clone() for name, p in named}
    bases: dict[str, torch.Tensor] = {}
    averages: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for step in range(1, 6):
        for name, parameter in named:
            gradient = parameter.grad = torch.randn(parameter.shape)
            is_projected, is_wide = name in ("wide", "tall"), name == "wide"
            if is_projected and (step - 1) % every == 0:
                u, _, vh = torch.linalg.svd(gradient)
                bases[name] = u[:, :rank] if is_wide else vh[:rank].T
            small = gradient
            if is_projected:
                small = bases[name].T @ gradient if is_wide else gradient @ bases[name]
            m, v = averages.setdefault(name, (torch.zeros_like(small), torch.zeros_like(small)))
            m.mul_(b1).add_((1 - b1) * small)
            v.mul_(b2).add_((1 - b2) * small**2)
            update = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
            if is_projected:
                update = scale * (bases[name] @ update if is_wide else update @ bases[name].T)
            expected[name] *= 1 - lr * (decay if parameter.ndim == 2 else 0)
            expected[name] -= lr * update
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in named:
            # An SVD's vectors are unique up to a sign, which cancels; float32 sums in another order.
            torch.testing.assert_close(parameter.data, expected[name], atol=2e-5, rtol=1e-4)


def test_of_full_rank_around_plain_descent_it_is_plain_descent() -> None:
    """P P^T = 1: one side less than r is not projected, so r is one below it and the gradient has that rank."""
    ours, plain = made(), made()
    one, other = GaLore(inner=Descent(), rank=4, scale=1.0).build(ours, 0.1), Descent().build(plain, 0.1)
    for _ in range(4):
        for (_, p), (_, q) in zip(ours, plain, strict=True):
            low = torch.randn(p.shape)
            if p.ndim == 2:
                low = torch.randn(p.shape[0], 4) @ torch.randn(4, p.shape[1])
            p.grad, q.grad = low.clone(), low.clone()
        one.state.clear()  # a new projection for each gradient
        one.step(), other.step()
    for (_, p), (_, q) in zip(ours, plain, strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_its_state_is_as_small_as_the_paper_says(rank: int) -> None:
    named = made()
    optimizer = GaLore(rank=rank).build(named, 0.1)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    size = sum(
        value.numel()
        for states in (optimizer.state, optimizer.inner.state)
        for state in states.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    expected = 0
    for _, parameter in named:
        short, long = min(parameter.shape), max(parameter.shape)
        is_projected = parameter.ndim == 2 and short > rank
        expected += rank * short + 2 * rank * long if is_projected else 2 * parameter.numel()
    assert size == expected
    assert all(small.numel() == 0 for small in optimizer.stand_ins.values())


def test_an_inner_galore_projects_what_is_projected() -> None:
    """Rank 4, then rank 2 of that: the innermost state has the sizes of the second projection."""
    named = made()
    inner = GaLore(rank=2, inner=Descent())
    optimizer = GaLore(inner=inner, rank=4).build(named, 0.1)
    matrix = max((p for _, p in named if p.ndim == 2 and min(p.shape) > 4), key=lambda p: p.numel())
    before = matrix.detach().clone()
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    assert torch.linalg.matrix_rank(matrix - before, rtol=1e-3) == 2  # of differences of float32 numbers
    within: Any = optimizer.inner
    small = optimizer.stand_ins[matrix]
    assert within.state[small]["basis"].numel() == 2 * 4
    said = inner.remarks(GaLore(inner=GaLore(rank=4), rank=4).build(named, 0.1).inner)
    assert len(said) == 1 and "projected nothing" in said[0]
    assert GaLore(inner=GaLore(rank=4), rank=4).remarks(GaLore(inner=GaLore(rank=4), rank=4).build(named, 0.1)) != ()


@pytest.mark.parametrize("inner", ["adamw", "adamw_8bit", {"galore": {"rank": 2}}])
def test_averages_stay_with_a_parameter_that_goes_on_training(inner: object) -> None:
    """However deep they lie: what is carried to a fresh optimizer takes the steps of the one that went on."""
    settings = GaLore(inner=Optim.parse(inner), rank=4, every_steps=100)
    found = []
    for changes in (False, True):
        named = made()
        optimizer = settings.build(named, 0.1)
        generator = torch.Generator().manual_seed(1)
        for step in range(6):
            if changes and step == 3:
                kept = [named[1], named[0], named[3]]  # one goes, and the others lie in another order
                fresh = settings.build(kept, 0.1)
                settings.carry(optimizer, fresh, {})
                optimizer = fresh
            for _, parameter in named:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        found.append({name: parameter for name, parameter in named if name != "narrow"})
    for name, parameter in found[0].items():
        assert torch.equal(parameter, found[1][name]), name


def test_an_inner_optimizer_without_gradients_is_refused() -> None:
    with pytest.raises(ValidationError, match="inner: 'seeds' takes no gradient, so that none is projected; take an"):
        GaLore(inner=Optim.parse("seeds"))
