"""A run that is killed at any moment and continued ends in the same bits."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import make_loop, trained

STEPS = 24
KILLS = 36
TUNERS = [{"full": {}}, {"lora": {"rank": 2, "dropout": 0.2}}]


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def train(folder: Path, tune: dict, die_at: int | None = None) -> None:
    def on_step(metrics: dict[str, float]) -> None:
        if metrics["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    loop = make_loop(folder, tune=tune, num_steps=STEPS, checkpoint_steps=5, on_step=on_step)
    save_file(trained(loop), folder / "trained.safetensors")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)  # a forked process has no other threads
    folder = tmp_path_factory.mktemp("whole")
    return {str(tune): trained(make_loop(folder / str(n), tune=tune, num_steps=STEPS)) for n, tune in enumerate(TUNERS)}


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_and_continued_equals_uninterrupted(
    tmp_path: Path, expected: dict[str, dict[str, torch.Tensor]], number: int
) -> None:
    """Two thirds die at a random step, the others at a random time: while loading, saving, or between."""
    generator = random.Random(number)
    tune = TUNERS[number % 2]
    if number % 3:
        pid = in_child(lambda: train(tmp_path, tune, die_at=generator.randint(1, STEPS)))
    else:
        pid = in_child(lambda: train(tmp_path, tune))
        time.sleep(generator.uniform(0.0, 0.6))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    _, status = os.waitpid(in_child(lambda: train(tmp_path, tune)), 0)
    assert status == 0
    got = load_file(tmp_path / "trained.safetensors")
    assert all(torch.equal(got[name], value) for name, value in expected[str(tune)].items())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == STEPS
