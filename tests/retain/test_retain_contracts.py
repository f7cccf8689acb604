"""What every retention method must keep: accumulated = one batch, resumed = uninterrupted, nothing at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from temper.retain.base import Retain
from training import examples, make_loop, trained, trained_with_a_break

NAMED = {"of": "old.jsonl"}
RETAIN: dict[str, object] = {
    **{name: {name: dict(method.example)} for name, method in Retain.methods().items()},
    "kl_base on named rows": {"kl_base": {**NAMED, "examples": 3, "strength": 2.0}},
    "kl_base in reverse": {"kl_base": {"direction": "reverse", "strength": 2.0}},
    "kl_base to another": {"kl_base": {"reference": "base"}},
}
EVERY = pytest.mark.parametrize("name", RETAIN)


@EVERY
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, name: str, tune: str) -> None:
    settings = {"retain": (RETAIN[name],), "tune": tune, "checkpoint_steps": 3}
    expected = trained(make_loop(tmp_path / "whole", **settings))
    got = trained_with_a_break(tmp_path / "cut", 5, **settings)
    assert all(torch.equal(got[parameter], value) for parameter, value in expected.items())


@EVERY
def test_accumulated_equals_one_large_batch(tmp_path: Path, name: str) -> None:
    whole = trained(make_loop(tmp_path / "whole", retain=(RETAIN[name],), num_steps=4))
    split = trained(make_loop(tmp_path / "split", retain=(RETAIN[name],), num_steps=4, micro_tokens=30))
    for parameter, value in whole.items():
        # Adam divides by the gradient's size: rounding of a gradient near zero is a step of up to lr per step.
        torch.testing.assert_close(split[parameter], value, atol=1e-3, rtol=1e-3)


@EVERY
def test_what_has_not_moved_is_not_punished(tmp_path: Path, name: str) -> None:
    penalties: list[float] = []
    made = examples(tuple(range(5, 15)))
    loop = make_loop(
        tmp_path,
        made=made,
        retain=(RETAIN[name],),
        num_steps=3,
        on_step=lambda metrics: penalties.append(metrics.get("penalty", 0.0)),
    )
    loop.run()
    if name == "kl_base to another":
        assert penalties[0] > 0
    else:
        assert abs(penalties[0]) < 1e-6
    assert penalties[-1] > 1e-7 or name == "replay"
