"""Lion against its paper's program, and how large its steps and its state are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from processes import trained_divided
from temper.optim.base import Optim
from temper.optim.lion import Lion
from training import examples, make_loop, trained


def made() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [("matrix", nn.Parameter(torch.randn(4, 3))), ("vector", nn.Parameter(torch.randn(5)))]


def test_it_takes_the_papers_steps() -> None:
    """Program 1: update = interp(g, m, b1), its sign, the decay added, times lr; then m = interp(g, m, b2)."""
    named = made()
    lr, b1, b2, decay = 0.1, 0.7, 0.95, 0.3
    optimizer = Lion(betas=(b1, b2), weight_decay=decay).build(named, lr)
    expected = [parameter.detach().double() for _, parameter in named]
    averages = [torch.zeros_like(value) for value in expected]
    for step in range(8):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate = lr / (step + 1)
        for index, (_, parameter) in enumerate(named):
            parameter.grad = torch.randn(parameter.shape)
            gradient = parameter.grad.double()
            update = (1 - b1) * gradient + b1 * averages[index]
            averages[index] = (1 - b2) * gradient + b2 * averages[index]
            update = torch.sign(update) + expected[index] * (decay if index == 0 else 0.0)
            expected[index] = expected[index] - update * rate
        optimizer.step()
        for (_, parameter), value in zip(named, expected, strict=True):
            # Eight float32 steps of numbers of the order of 1.
            torch.testing.assert_close(parameter.detach().double(), value, atol=2e-6, rtol=0)


def test_every_number_moves_by_lr_and_its_state_is_one_number() -> None:
    named = made()
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = Lion().build(named, 0.25)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape) * 1e-3
    optimizer.step()
    for (_, parameter), old in zip(named, before, strict=True):
        torch.testing.assert_close((parameter.detach() - old).abs(), torch.full_like(old, 0.25))
    held = [value for state in optimizer.state.values() for value in state.values()]
    assert sum(value.numel() for value in held) == sum(value.numel() for value in before)


def test_room_is_made_as_the_first_step_would() -> None:
    found = []
    for makes_room in (False, True):
        named = made()
        method = Lion(weight_decay=0.1)
        optimizer = method.build(named, 1e-2)
        if makes_room:
            method.make_room(optimizer)
        torch.manual_seed(1)
        for _ in range(3):
            for _, parameter in named:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        found.append([parameter for _, parameter in named])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_loss_falls(tmp_path: Path) -> None:
    losses: list[float] = []
    loop = make_loop(
        tmp_path,
        made=examples((6, 8, 10, 12)),
        optimizer="lion",
        num_steps=30,
        lr=3e-4,
        on_step=lambda metrics: losses.append(metrics["loss"]),
    )
    loop.run()
    assert losses[-1] < 0.6 * losses[0]


def test_divided_among_two_processes_it_takes_the_same_steps(tmp_path: Path) -> None:
    settings = {"optimizer": {"lion": {"weight_decay": 0.1}}, "num_steps": 6, "lr": 1e-3, "batch_size": 6}
    alone = trained(make_loop(tmp_path / "alone", **settings))
    found = trained_divided(tmp_path / "two", **settings)
    apart = torch.cat([(found[name] - value).abs().flatten() for name, value in alone.items()])
    # A sum over processes has another order: where an average is near zero its sign may turn, worth two steps.
    assert float((apart > 1e-6).float().mean()) < 1e-2 and float(apart.max()) < 6 * 2.01e-3


def test_settings_out_of_bounds_are_refused() -> None:
    for written in ({"betas": [0.9, 1.0]}, {"betas": [-0.1, 0.9]}, {"weight_decay": -1}):
        with pytest.raises(ValueError, match="lion"):
            Optim.parse({"lion": written})
