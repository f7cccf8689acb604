"""Rounds: each trains the start on all there is, only seed rows are expanded, and a kill changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import temper.stages.rounds as module
from families import tiny
from temper.core.errors import StageError
from temper.data.rows import Rows
from temper.delta.base import read_delta
from temper.lab.skill import Skill
from temper.models.load import save_model
from temper.pipeline.keys import plan
from temper.pipeline.recipe import Recipe
from temper.pipeline.result import Run
from temper.pipeline.run import run
from temper.stages.base import Stage

TRAIN = {"tune": {"lora": {"rank": 2}}, "lr": 1e-2, "steps": 6, "batch_size": 4, "checkpoint_steps": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(tiny("llama", num_hidden_layers=1), folder)
    return folder


def made(folder: Path, base: Path, kind: str, settings: dict[str, Any], *more: dict[str, Any]) -> Run:
    stages = [{"name": "grow", kind: settings}, *more]
    recipe = {"name": "mine", "base": str(base), "measure": {"keep": []}, "stages": stages}
    return run(Recipe.parse(recipe), runs=folder / "runs", say=lambda text: None)


def llm2llm(**more: Any) -> dict[str, Any]:
    data = [{"lab": {"skill": "copy", "num": 6}}]
    return {"method": {"llm2llm": {"per_error": 2, **more}}, "data": data, "num": 2, "train": TRAIN}


def test_each_round_adds_to_the_data_and_the_result_is_one_change_to_the_start(tmp_path: Path, base: Path) -> None:
    grow = made(tmp_path, base, "rounds", llm2llm()).stages["grow"]
    rounds = grow.record["details"]["rounds"]
    # A random model answers nothing right: every seed row is expanded in both rounds, and nothing but seed rows.
    assert [(it["round"], it["asked"], it["wrong"]) for it in rounds] == [(1, 6, 6), (2, 6, 6)]
    assert [it["rows"] for it in rounds] == [6 + rounds[0]["made"], 6 + rounds[0]["made"] + rounds[1]["made"]]
    assert grow.record["details"]["rows"] == rounds[-1]["rows"]
    assert grow.record["cost"]["steps"] == 3 * 6, "trained before the first round, and after each"
    assert (grow.folder / "delta").is_dir()
    copy = Skill.parse("copy")
    for number in (1, 2):
        for row in Rows.map_file(grow.folder / f"round-{number}" / "data.arrow", ""):
            argument = str(row.content["prompt"]).removeprefix("copy:").removesuffix("=")
            assert row.content["completion"] == copy.answer(argument) and not copy.in_test(argument)
    assert read_delta(grow.folder / "delta").provenance.base_name == str(base)


@pytest.mark.parametrize("where", ["training", "making"])
def test_a_kill_in_a_round_changes_nothing(
    tmp_path: Path, base: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole", base, "rounds", llm2llm()).stages["grow"]

    calls: list[str] = []
    real_train, real_make = module.train_into, module.make

    def train(*arguments: Any) -> Any:
        calls.append("train")
        if where == "training" and len(calls) == 3:
            real_train(*arguments)  # its result is there, but not yet written down as done
            raise RuntimeError("killed")
        return real_train(*arguments)

    def make(*arguments: Any) -> Any:
        calls.append("make")
        if where == "making" and len(calls) == 4:
            raise RuntimeError("killed")
        return real_make(*arguments)

    monkeypatch.setattr(module, "train_into", train)
    monkeypatch.setattr(module, "make", make)
    with pytest.raises(StageError, match="killed"):
        made(tmp_path / "cut", base, "rounds", llm2llm())
    calls.extend(["done"] * 9)
    cut = made(tmp_path / "cut", base, "rounds", llm2llm()).stages["grow"]
    # The first round is not done again: what is left are at most two trainings and one making.
    assert calls.count("make") <= 3 and calls[-1] == "train"
    first, second = (load_file(next((grow.folder / "delta").glob("*.safetensors"))) for grow in (whole, cut))
    assert all(value.equal(second[name]) for name, value in first.items())
    assert cut.record["details"]["rounds"] == whole.record["details"]["rounds"]


def test_s3ft_makes_first_and_trains_once_on_what_it_made(tmp_path: Path, base: Path) -> None:
    settings = {**llm2llm(), "method": {"s3ft": {"paraphrase": None}}, "num": 1}
    grow = made(tmp_path, base, "rounds", settings).stages["grow"]
    assert grow.record["cost"]["steps"] == 6 and not (grow.folder / "round-1" / "trained").exists()
    assert grow.record["details"]["rounds"] == [{"round": 1, "rows": 6, "own": 0, "paraphrase": 0, "gold": 6}]


def test_the_stage_synthesize_leaves_data_for_a_stage_of_its_own(tmp_path: Path, base: Path) -> None:
    train = {"name": "adapt", "train": {"data": ["grow"], **TRAIN, "from": "base"}}
    settings = {key: value for key, value in llm2llm().items() if key in ("method", "data")}
    result = made(tmp_path, base, "synthesize", settings, train)
    details = result.stages["grow"].record["details"]
    assert details["rows"] == 6 and details["counts"]["wrong"] == 6
    assert result.stages["adapt"].record["details"]["rows"] == 6 + details["made"]


def test_rows_that_it_cannot_work_with_are_refused(tmp_path: Path, base: Path) -> None:
    settings = {**llm2llm(), "data": [{"lab": {"skill": "copy", "form": "text", "num": 4}}]}
    with pytest.raises(StageError, match="'llm2llm' cannot work with rows of format text; give it rows of completion"):
        made(tmp_path, base, "rounds", settings)


def test_what_its_training_asks_and_reads_is_part_of_its_name(tmp_path: Path) -> None:
    """Another teacher, or other rows to hold to, make another result: the stage is done again."""
    held = tmp_path / "held.jsonl"
    keys = []
    for lr, text in ((1e-2, "a"), (1e-3, "a"), (1e-3, "b")):
        held.write_text(json.dumps({"prompt": text, "completion": text}) + "\n")
        own = {"objective": {"distill": {"teacher": "first"}}, "retain": [{"ewc": {"of": str(held)}}]}
        first = {"name": "first", "train": {"data": ["lab/copy"], **TRAIN, "lr": lr}}
        stages = [first, {"name": "grow", "rounds": {**llm2llm(), "from": "base", "train": {**TRAIN, **own}}}]
        recipe = Recipe.parse({"base": "lab:nano", "measure": {"keep": []}, "stages": stages})
        grow = plan(recipe, "base")[1]
        assert grow.models == ("base", "first") and grow.previous == "base"
        keys.append(grow.key)
    assert len(set(keys)) == 3


def test_a_soft_prompt_that_it_trains_takes_positions() -> None:
    stage = Stage.parse({"rounds": {**llm2llm(), "train": {**TRAIN, "tune": {"soft_prompt": {"length": 7}}}}})
    assert stage.prompt_length({"base": 2}, "base") == 9
