"""What every objective must keep: packed = one by one, accumulated = one batch, resumed = uninterrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from families import tiny
from objective_rows import OBJECTIVES, encoded, gradients, setup_of
from temper.core.schedule import Moment
from temper.data.pack import pack
from temper.objectives.base import Objective
from training import make_loop, moved_slightly, trained, trained_with_a_break

EVERY = pytest.mark.parametrize("name", OBJECTIVES)


@EVERY
def test_packed_equals_one_example_at_a_time(name: str) -> None:
    model = tiny("llama")
    model.module.requires_grad_(True)
    objective = Objective.parse(OBJECTIVES[name])
    made = encoded(objective, model, 7)
    target = objective.build(model, setup_of(model))
    moved_slightly(model)
    whole, alone = pack(made), [pack([example]) for example in made]
    moment = Moment(0, 0.0)

    target.before_batches([whole], moment)
    together = target.loss(whole, moment)
    packed = gradients(model, together.total)
    target.before_batches(alone, moment)
    parts = [target.loss(batch, moment) for batch in alone]
    naive = gradients(model, torch.stack([part.total for part in parts]).sum())

    assert objective.units(whole) == pytest.approx(sum(objective.units(batch) for batch in alone))
    # Sums of some hundred float32 products in another order.
    torch.testing.assert_close(together.total, sum(part.total for part in parts), atol=1e-4, rtol=1e-4)
    assert together.document_B is not None
    by_document = torch.cat([part.document_B for part in parts])  # type: ignore[misc]
    torch.testing.assert_close(together.document_B, by_document, atol=1e-4, rtol=1e-4)
    assert packed.keys() == naive.keys() and packed
    scale = max(float(value.abs().max()) for value in naive.values())
    assert scale > 0
    for parameter, value in naive.items():
        assert float((packed[parameter] - value).abs().max()) < 1e-4 * scale, parameter
    for metric in together.metrics:
        assert together.metrics[metric] == pytest.approx(sum(part.metrics[metric] for part in parts), abs=1e-3), metric


@EVERY
@pytest.mark.parametrize("micro_tokens", [1, 60])
def test_accumulated_equals_one_large_batch(tmp_path: Path, name: str, micro_tokens: int) -> None:
    made = encoded(Objective.parse(OBJECTIVES[name]), tiny("llama"))
    settings = {"made": made, "objective": OBJECTIVES[name], "num_steps": 4}
    whole = trained(make_loop(tmp_path / "whole", **settings))
    split = trained(make_loop(tmp_path / "split", micro_tokens=micro_tokens, **settings))
    for parameter, value in whole.items():
        # Adam divides by the gradient's size: rounding of a gradient near zero is a step of up to lr per step.
        torch.testing.assert_close(split[parameter], value, atol=1e-3, rtol=1e-3)


@EVERY
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, name: str, tune: str) -> None:
    made = encoded(Objective.parse(OBJECTIVES[name]), tiny("llama"))
    # Eight steps of four examples, of twenty: the second epoch begins before the checkpoint that is continued from.
    settings = {"made": made, "objective": OBJECTIVES[name], "tune": tune, "checkpoint_steps": 3}
    expected = trained(make_loop(tmp_path / "whole", **settings))
    got = trained_with_a_break(tmp_path / "cut", 7, **settings)
    assert all(torch.equal(got[parameter], value) for parameter, value in expected.items())


@EVERY
def test_it_learns(tmp_path: Path, name: str) -> None:
    """The mean of the last steps' losses lies below that of the first."""
    made = encoded(Objective.parse(OBJECTIVES[name]), tiny("llama"), 8)
    losses: list[float] = []
    loop = make_loop(
        tmp_path,
        made=made,
        objective=OBJECTIVES[name],
        num_steps=24,
        batch_size=8,
        on_step=lambda metrics: losses.append(metrics["loss"]),
    )
    loop.run()
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses


@EVERY
def test_a_step_without_gradients_sees_the_whole_step_however_it_is_cut(tmp_path: Path, name: str) -> None:
    """The slope along a direction that two losses tell is the gradient's, micro-batches or not."""
    made = encoded(Objective.parse(OBJECTIVES[name]), tiny("llama"), 8)

    def slope(micro_tokens: int) -> float:
        folder = tmp_path / str(micro_tokens)
        optimizer = {"seeds": {"num_seeds": 1, "eps": 1e-3}}
        loop = make_loop(
            folder,
            made=made,
            objective=OBJECTIVES[name],
            optimizer=optimizer,
            num_steps=1,
            batch_size=8,
            micro_tokens=micro_tokens,
        )
        loop.run()
        return float(json.loads((folder / "metrics.jsonl").read_text())["scalar"])

    whole = slope(8192)
    assert abs(whole) > 1e-3
    # Differences of float32 losses over 2e-3.
    assert slope(1) == pytest.approx(whole, rel=2e-2, abs=5e-3)
