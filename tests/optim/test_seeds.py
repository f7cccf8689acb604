"""Seeded zeroth-order steps: the formula, no backward pass, and replay from seeds and scalars alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from families import tiny
from temper.core.errors import TrainingError
from temper.optim.seeds import Seeds
from training import attach, examples, make_loop, trained

FEW = {"seeds": {"num_seeds": 5, "eps": 1e-3}}


def z_of(seed: int, shapes: list[torch.Size]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_it_takes_the_papers_steps() -> None:
    torch.manual_seed(0)
    named = [("a", nn.Parameter(torch.randn(4, 3))), ("b", nn.Parameter(torch.randn(5)))]
    expected = [p.detach().double() for _, p in named]
    goals = [torch.randn(p.shape) for p in expected]

    def loss(values: list[torch.Tensor]) -> float:
        return sum(float((value - goal).square().sum()) for value, goal in zip(values, goals, strict=True))

    optimizer = Seeds(num_seeds=7, eps=0.1).build(named, 0.01)
    for _ in range(6):
        optimizer.step(lambda: loss([p.detach().double() for _, p in named]))
        z = [part.double() for part in z_of(int(optimizer.last["seed"]), [p.shape for p in expected])]
        sides = [loss([w + sign * 0.1 * d for w, d in zip(expected, z, strict=True)]) for sign in (1, -1)]
        g = (sides[0] - sides[1]) / 0.2
        assert optimizer.last["scalar"] == pytest.approx(g, rel=1e-3)
        expected = [w - 0.01 * g * d for w, d in zip(expected, z, strict=True)]
    for (_, parameter), value in zip(named, expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tune", ["full", {"lora": {"rank": 2}}])
def test_a_run_is_replayed_from_its_record_alone_bit_for_bit(tmp_path: Path, tune: object) -> None:
    loop = make_loop(tmp_path, tune=tune, optimizer=FEW, num_steps=10, lr=1e-3)
    got = trained(loop)
    record = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(type(step["seed"]) is int and 0 <= step["seed"] < 5 for step in record)

    parameters = list(attach(tune, tiny("llama")).parameters())
    starts = [p.detach().clone() for _, p in parameters]
    Seeds.model_validate(FEW["seeds"]).build(parameters, 1.0).replay(record)
    assert all(torch.equal(parameter, got[name]) for name, parameter in parameters)

    # One scalar for each seed says where the run has gone, to the rounding of float32 sums in another order.
    sums: dict[int, float] = {}
    for step in record:
        sums[step["seed"]] = sums.get(step["seed"], 0.0) + step["lr"] * step["scalar"]
    ends = [start.clone() for start in starts]
    for seed, amount in sums.items():
        for end, z in zip(ends, z_of(seed, [start.shape for start in starts]), strict=True):
            end -= amount * z
    for (name, _), end in zip(parameters, ends, strict=True):
        torch.testing.assert_close(end, got[name], atol=1e-5, rtol=1e-5)


def test_there_is_no_backward_pass_and_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    loop = make_loop(tmp_path, optimizer=FEW, num_steps=2, lr=1e-4)
    loop.run()
    assert not loop.optimizer.state
    assert all(parameter.grad is None for parameter in loop.model.module.parameters())
    with pytest.raises(AssertionError, match="a backward pass"):
        make_loop(tmp_path / "control", num_steps=2).run()


def test_the_loss_falls(tmp_path: Path) -> None:
    def fall(lr: float) -> float:
        losses: list[float] = []
        make_loop(
            tmp_path / str(lr),
            made=examples((6, 8)),
            optimizer="seeds",
            num_steps=150,
            batch_size=2,
            lr=lr,
            on_step=lambda metrics: losses.append(metrics["loss"]),
        ).run()
        return (sum(losses[:10]) - sum(losses[-10:])) / 10

    assert fall(2e-5) > 0.1 > 0.01 > abs(fall(1e-9)), "the control hardly moves"


def test_a_broken_side_leaves_the_numbers_as_they_were() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Seeds(eps=0.5).build([("a", parameter)], 0.1)
    losses = iter([1.0, math.inf])
    with pytest.raises(TrainingError, match="inf on one side"):
        optimizer.step(lambda: next(losses))
    torch.testing.assert_close(parameter.detach(), torch.ones(3), atol=1e-6, rtol=0)


def test_both_sides_drop_the_same() -> None:
    """Chance that is the same on both sides leaves their difference alone; from step to step it is another."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = Seeds(num_seeds=1, eps=0.1).build([("a", parameter)], 1e-9)
    (z,) = z_of(0, [parameter.shape])
    kept: list[torch.Tensor] = []

    def loss() -> float:
        kept.append(torch.nn.functional.dropout(torch.ones(4), 0.5))
        return float((parameter.detach() * kept[-1]).sum())

    torch.manual_seed(0)
    for _ in range(4):
        optimizer.step(loss)
        assert optimizer.last["scalar"] == pytest.approx(float((z * kept[-1]).sum()), abs=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(kept[::2], kept[1::2], strict=True))
    assert len({tuple(each.tolist()) for each in kept}) > 1
