"""Plans against the runs that follow them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from families import tiny
from temper.engine.forecast import Elsewhere
from temper.engine.layout import Layout
from temper.models.load import save_model
from temper.pipeline.plan import Plan, plan
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    save_model(tiny("llama", num_hidden_layers=1, num_key_value_heads=4), folder / "base")
    rows = [{"prompt": "ab" * (1 + index % 9), "completion": "cd" * (1 + index % 5)} for index in range(90)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe(folder: Path, **train: Any) -> Recipe:
    settings = {"data": [str(folder / "data.jsonl")], "max_length": 64, "lr": 1e-3, **train}
    return Recipe.parse(
        {
            "name": "planned",
            "base": str(folder / "base"),
            "measure": {"keep": []},
            "stages": [
                {"name": "first", "train": {**settings, "tune": "full", "epochs": 2, "micro_tokens": 128}},
                {"name": "second", "train": {**settings, "tune": "lora", "steps": 3}},
                {"name": "both", "merge": {"method": "linear", "of": ["first", "second"]}},
            ],
        }
    )


def stages(made: Plan) -> dict[str, Any]:
    return {stage.name: stage for stage in made.stages}


def test_steps_tokens_and_operations_are_those_of_the_run(folder: Path, tmp_path: Path) -> None:
    written = recipe(folder)
    planned = stages(plan(written, runs=tmp_path))
    assert not (tmp_path / "planned").exists()
    assert [stage.kind for stage in planned.values()] == ["train", "train", "merge"]
    assert planned["both"].reads == ("first", "second", "base")
    result = run(written, runs=tmp_path, until="second", say=lambda text: None)
    for name in ("first", "second"):
        cost, stage = result.stages[name].record["cost"], planned[name]
        assert (stage.steps, stage.tokens, stage.flops) == (cost["steps"], cost["tokens"], cost["flops"])
        assert stage.memory_bytes == sum(stage.memory.values()) and stage.seconds > 0
    again = stages(plan(written, runs=tmp_path))
    assert [stage.is_done for stage in again.values()] == [True, True, False]


def test_a_stage_that_does_not_fit_says_what_would(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temper.pipeline.plan.resident_bytes", lambda: 0)  # what the process holds varies by pages
    written = recipe(folder)
    written = written.model_copy(update={"stages": written.stages[:1]})
    needed = stages(plan(written, runs=tmp_path))["first"].memory_bytes
    assert stages(plan(written, runs=tmp_path, memory=needed))["first"].problem is None
    tight = plan(written, runs=tmp_path, memory=needed - 1)
    assert not tight.works
    first = stages(tight)["first"]
    assert first.problem.startswith("needs") and any(fix.startswith("micro_tokens: 64") for fix in first.fixes)


def test_one_of_512_processes_in_seconds(folder: Path, tmp_path: Path) -> None:
    alone = stages(plan(recipe(folder), runs=tmp_path, place=Elsewhere(1, Layout())))["first"]
    many = stages(plan(recipe(folder), runs=tmp_path, place=Elsewhere(512, Layout(tp=4))))["first"]
    assert many.notes == () and many.seconds is None and "process" not in many.memory
    assert many.memory["optimizer"] < 0.05 * alone.memory["optimizer"]


def test_a_layout_that_does_not_divide_is_a_problem(folder: Path, tmp_path: Path) -> None:
    made = plan(recipe(folder), runs=tmp_path, place=Elsewhere(8, Layout(fsdp=3, tp=2)))
    assert not made.works and "makes 6 processes" in str(stages(made)["first"].problem)


@pytest.mark.parametrize("only", ["llama-128x2-v1000-full-fp32-l128", "llama-128x2-v128000-lora"])
def test_memory_is_predicted_within_a_tenth(root: Path, environment: dict[str, str], only: str) -> None:
    """Two of the configurations in docs/plan.md, in processes of their own."""
    command = [sys.executable, str(root / "benchmarks" / "plan.py"), "--only", only]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
