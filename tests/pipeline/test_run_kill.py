"""A recipe that is killed at any moment and started again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch

from families import tiny
from temper.core.errors import SettingError
from temper.core.hashing import hash_file
from temper.models.load import save_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.result import Run
from temper.pipeline.run import run

KILLS = 6
REFUSED = 3


def recipe(base: Path) -> Recipe:
    train = {"data": ["lab/copy"], "steps": 12, "checkpoint_steps": 2, "batch_size": 8, "precision": "fp32"}
    drift = {"drift": {"texts": 8, "length": 8}}
    return Recipe.parse(
        {
            "name": "killed",
            "base": str(base),
            "measure": {"gain": ["lab/copy"], "keep": [drift], "examples": 8, "shots": 0},
            "stages": [
                {"name": "first", "train": {**train, "tune": {"lora": {"rank": 2, "dropout": 0.1}}, "lr": 1e-2}},
                {"name": "second", "train": {**train, "tune": "full", "lr": 1e-3}},
                {"name": "merged", "merge": {"method": "linear", "of": ["first", "second"]}},
            ],
        }
    )


def in_child(base: Path, runs: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(recipe(base), runs=runs, say=lambda text: None)
            code = 0
        except SettingError:
            code = REFUSED
        finally:
            os._exit(code)
    return pid


def results(runs: Path) -> dict[str, str]:
    """Return the bits of the weights that each stage made."""
    stages = Run(runs / "killed").stages
    weights = {
        name: next(iter(stage.folder.glob("*/*.safetensors"))) for name, stage in stages.items() if name != "base"
    }
    return {name: hash_file(path) for name, path in weights.items()}


def test_killed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads
    base = tmp_path / "base"
    save_model(tiny("llama", num_hidden_layers=1), base)
    started = time.monotonic()
    assert os.waitpid(in_child(base, tmp_path / "whole"), 0)[1] == 0
    seconds = time.monotonic() - started
    expected = results(tmp_path / "whole")
    assert len(expected) == 3
    random_numbers = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        pid = in_child(base, tmp_path / "killed")
        time.sleep(random_numbers.uniform(0.05, 0.3) * seconds)
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
    assert os.waitpid(in_child(base, tmp_path / "killed"), 0)[1] == 0
    assert results(tmp_path / "killed") == expected
    assert killed >= 2, "the machine was too fast: nothing was tested"
    leftovers = [path for path in (tmp_path / "killed" / "killed").iterdir() if path.suffix in (".old", ".partial")]
    assert leftovers == []


def test_two_runs_of_one_recipe_do_not_mix(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = tmp_path / "base"
    save_model(tiny("llama", num_hidden_layers=1), base)
    children = [in_child(base, tmp_path / "runs") for _ in range(2)]
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
    assert codes == [0, REFUSED]
