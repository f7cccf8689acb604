"""Snapshots of a stage: evenly spread, what training really held, and the same after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from families import tiny
from temper.data.rows import Rows
from temper.engine.fit import Fitted, fit
from temper.engine.settings import FitSettings
from temper.signals.trajectory import read_trajectory


def rows() -> Rows:
    return Rows.from_list([{"prompt": f"{n}", "completion": "abc"[: 1 + n % 3]} for n in range(24)], "completion", "r")


def train(folder: Path, **more: Any) -> Fitted:
    on_step = more.pop("on_step", None)
    written = {"tune": {"lora": {"rank": 2}}, "lr": 1e-2, "steps": 8, "batch_size": 4, "checkpoint_steps": 3, **more}
    settings = FitSettings.model_validate({"snapshots": 4, **written})
    return fit(tiny("llama", num_hidden_layers=1), rows(), settings, folder=folder, on_step=on_step)


def test_they_are_evenly_spread_and_hold_what_training_held(tmp_path: Path) -> None:
    lrs: list[float] = []
    fitted = train(tmp_path, on_step=lambda metrics: lrs.append(metrics["lr"]))
    snapshots = read_trajectory(tmp_path)
    assert [snapshot.step for snapshot in snapshots] == [2, 4, 6, 8]
    assert [snapshot.lr for snapshot in snapshots] == pytest.approx(
        [sum(lrs[start : start + 2]) / 2 for start in (0, 2, 4, 6)], rel=1e-12
    )
    assert snapshots[0].tune == {"lora": fitted_settings(snapshots[0].tune)} and snapshots[0].seed == 0
    last = snapshots[-1].trained()
    assert all(torch.equal(last[name], value) for name, value in fitted.tuning.parameters())
    assert not any(torch.equal(snapshots[0].trained()[name], value) for name, value in last.items())


def fitted_settings(tune: dict[str, Any]) -> dict[str, Any]:
    assert tune["lora"]["rank"] == 2
    return dict(tune["lora"])


def test_the_optimizers_moments_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """After two steps Adam's first moment is b1 (1 - b1) g1 + (1 - b1) g2: its sign and size follow the gradients."""
    train(tmp_path, steps=1, snapshots=1, clip=None)
    (snapshot,) = read_trajectory(tmp_path)
    (group,) = [group for group in snapshot.groups if group["names"]]
    assert group["betas"] == [0.9, 0.999] and group["eps"] == 1e-8
    state = snapshot.optimizer_state()
    assert set(state) == set(snapshot.trained()) == set(group["names"])
    for moments in state.values():
        # One step: m = (1 - b1) g and v = (1 - b2) g^2.
        gradient = moments["exp_avg"] / 0.1
        torch.testing.assert_close(moments["exp_avg_sq"], 0.001 * gradient.square(), atol=1e-12, rtol=1e-4)


def test_a_stage_that_was_killed_leaves_the_same_snapshots(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise Stopped

    train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "cut", on_step=stop)
    train(tmp_path / "cut")
    whole, cut = read_trajectory(tmp_path / "whole"), read_trajectory(tmp_path / "cut")
    assert [snapshot.fingerprint() for snapshot in cut] == [snapshot.fingerprint() for snapshot in whole]


def test_parts_shorter_than_a_step_get_none_and_none_is_the_default(tmp_path: Path) -> None:
    train(tmp_path / "few", steps=2, snapshots=5)
    assert [snapshot.step for snapshot in read_trajectory(tmp_path / "few")] == [1, 2]
    train(tmp_path / "none", steps=2, snapshots=0)
    assert not read_trajectory(tmp_path / "none") and not (tmp_path / "none" / "trajectory").exists()


def test_the_best_step_and_the_way_to_the_last_exclude_one_another() -> None:
    with pytest.raises(ValidationError, match="validation returns to the best one; leave one of the two out"):
        FitSettings.model_validate({"snapshots": 2, "validation": {}})
