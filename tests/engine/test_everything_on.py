"""With every option on at once, a killed run ends in the same bits; and a process that dies ends them all, soon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import tiny
from processes import start, together, wait
from temper.core.errors import TrainingError
from temper.data.rows import Rows
from temper.engine import checkpoint
from temper.engine.checkpoint import Checkpoints, copied_bytes
from temper.engine.distributed import World
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.engine.watch import LossWatch
from training import make_loop, trained, trained_with_a_break

STEPS = 14
EVERYTHING = {
    "tune": {"lora": {"rank": 2, "dropout": 0.2}},
    "optimizer": {"adamw": {"weight_decay": 0.01}},
    "retain": [{"replay": {"of": "old.jsonl", "share": 0.25}}],
    "lr": 1e-2,
    "schedule": {"wsd": {"warmup": 0.1}},
    "steps": STEPS,
    "batch_tokens": 120,
    "micro_tokens": 40,
    "max_length": 32,
    "truncate": True,
    "clip": 0.5,
    "spike": 8.0,
    "precision": "bf16",
    "hold": "nf4",
    "checkpoint_steps": 3,
    "validation": {"share": 0.2, "every_steps": 2, "patience": 50},
    "track": ["tensorboard"],
}
FULL = {**EVERYTHING, "tune": {"full": {"freeze": ["*.ln_1.*"]}}, "lr": 1e-3, "hold": None}


def rows(letter: str, count: int) -> Rows:
    records = [{"prompt": letter * (1 + index % 7), "completion": "cd" * (1 + index % 3)} for index in range(count)]
    return Rows.from_list([*records, {"prompt": letter, "completion": "b" * 60}], "completion", "made")


def train(folder: Path, settings: dict[str, Any], world: World | None = None) -> None:
    """Fit a model whose family drops too (GPT-2's dropout is on), and keep what came out."""
    model = tiny("gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    parsed = FitSettings.model_validate(settings)
    fitted = fit(model, rows("a", 50), parsed, folder=folder, open_source=lambda source: rows("x", 9), world=world)
    if world is None or world.is_main:
        weights = {name: parameter.detach().clone() for name, parameter in fitted.tuning.parameters()}
        save_file(weights, folder / "trained.safetensors")


def die_at(step: int, how: Any) -> None:
    """Make this process end before it updates its numbers in a step."""
    check = LossWatch.check

    def dying(self: LossWatch, number: int, *rest: Any) -> None:
        if number == step:
            how()
        check(self, number, *rest)

    LossWatch.check = dying  # type: ignore[method-assign]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(found: Path, expected: Path) -> None:
    assert metrics(found) == metrics(expected) and len(metrics(expected)) == STEPS
    weights, others = load_file(found / "trained.safetensors"), load_file(expected / "trained.safetensors")
    assert all(torch.equal(weights[name], other) for name, other in others.items())


@pytest.mark.parametrize(("size", "settings"), [(1, EVERYTHING), (1, FULL), (2, EVERYTHING), (2, FULL)])
def test_killed_with_everything_on_ends_in_the_same_bits(tmp_path: Path, size: int, settings: dict[str, Any]) -> None:
    def work(world: World) -> None:
        train(tmp_path / "whole", settings, world)
        die_at(8, kill if world.rank == size - 1 else lambda: None)
        train(tmp_path / "cut", settings, world)

    started = time.monotonic()
    codes = wait(start(size, work))
    assert codes[-1] == -signal.SIGKILL and 0 not in codes, f"after {time.monotonic() - started:.0f} s"
    assert len(metrics(tmp_path / "cut")) < STEPS
    together(size, lambda world: train(tmp_path / "cut", settings, world))
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_when_one_process_ends_all_end_within_seconds_and_its_error_comes_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tune: str, how: str
) -> None:
    """Timed from the death itself: no time-out is waited for (gloo's is half an hour)."""

    def work(world: World) -> None:
        def end() -> None:
            (tmp_path / "died").write_text(repr(time.time()))
            if how == "killed":
                kill()
            raise ZeroDivisionError("made in the test")

        if world.rank == 2:
            die_at(3, end)
        train(tmp_path, {"tune": tune, "steps": 50, "batch_size": 8, "truncate": True, "max_length": 32}, world)

    codes = wait(start(3, work), seconds=120)
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert seconds < 15 and 0 not in codes
    told = capfd.readouterr().err
    if how == "failed":
        assert told.index("ZeroDivisionError: made in the test") < told.index("another process of this run has ended")
        assert told.index("process 2 of 3 failed:") < told.index("ZeroDivisionError: made in the test")
    assert "another process of this run has ended" in told


def test_an_error_of_the_writing_thread_is_an_error_of_the_run(tmp_path: Path) -> None:
    settings = {"tune": "full", "steps": 6, "batch_size": 8, "checkpoint_steps": 2, "truncate": True, "max_length": 32}
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(TrainingError, match="a checkpoint could not be written"):
        train(tmp_path, settings)


def test_of_what_is_large_no_copy_is_held_and_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(1000.0)
    assert copied_bytes([weight, weight.double()]) == 12_000
    monkeypatch.setattr(checkpoint, "COPIED_BYTES", 3_999)
    assert copied_bytes([weight]) == 0
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weight": weight}, {})
    assert not checkpoints._copies and checkpoints._writer is None and (tmp_path / "step-000000001").is_dir()
    weight.fill_(-1)
    found = Checkpoints(tmp_path).load({})
    assert found is not None and torch.equal(found[0]["weight"], torch.arange(1000.0))
    (tmp_path / "step-000000002.partial").write_text("in the way")
    with pytest.raises(TrainingError, match="a checkpoint could not be written"):
        checkpoints.save(2, {"weight": weight}, {})


@pytest.mark.parametrize("stop", [4, 7])
def test_resumed_from_what_was_not_copied(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "COPIED_BYTES", 0)
    expected = trained(make_loop(tmp_path / "whole", checkpoint_steps=3))
    found = trained_with_a_break(tmp_path / "cut", stop, checkpoint_steps=3)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """What is written is what was there when it was saved, however the numbers move meanwhile."""
    weight = torch.nn.Parameter(torch.arange(1000.0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weight": weight.detach()}, {"momentum": [weight.detach() * 2], "note": ("a", 1)})
    with torch.no_grad():
        weight.fill_(-1)
    checkpoints.save(2, {"weight": weight.detach()}, {"momentum": [weight.detach()], "note": ("b", 2)})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "step-000000002")
    found = Checkpoints(tmp_path).load({})
    assert found is not None
    numbers, state = found
    assert torch.equal(numbers["weight"], torch.arange(1000.0))
    assert state["note"] == ("a", 1) and torch.equal(state["momentum"][0], numbers["weight"] * 2)
