"""A stage that learns one suite alone, from the base, is the expert beside which learning in sequence is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from temper.lab.architecture import Architecture
from temper.lab.tokenizer import character_tokenizer
from temper.measure.expert import relative_performance, sample_efficiency
from temper.models.load import new_model, save_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import run


def test_an_expert_is_found_and_its_losses_are_read(tmp_path: Path) -> None:
    config = Architecture(width=32, layers=1, heads=2, max_positions=64).config(96)
    save_model(new_model(config, character_tokenizer(), seed=0), tmp_path / "base")

    def train(*skills: str, **more: object) -> dict[str, object]:
        data = [{"lab": {"skill": skill, "num": 16}} for skill in skills]
        return {"data": data, "tune": "full", "lr": 1e-2, "steps": 6, "batch_size": 4, **more}

    stages = [
        {"name": "both", "train": train("copy", "shift", **{"from": "base"})},
        {"name": "alone", "train": train("shift", **{"from": "base"})},
        {"name": "first", "train": train("copy", **{"from": "base"})},
        {"name": "second", "train": train("shift")},
    ]
    gain = [{"exact_match": {"source": {"lab": {"skill": skill, "num": 16}}}} for skill in ("copy", "shift")]
    measure = {"gain": gain, "keep": [], "examples": 4, "shots": 0}
    recipe = Recipe.parse({"base": str(tmp_path / "base"), "measure": measure, "stages": stages})
    result = run(recipe, runs=tmp_path / "runs", say=lambda text: None)

    def losses(stage: str) -> list[float]:
        lines = (result.stages[stage].folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]

    # `both` is no expert of shift, for it learned copy as well; `first` is not judged beside itself.
    assert len(losses("second")) == 6 and losses("second") != losses("alone")
    assert result.matrix["relative_performance"] == relative_performance(losses("second"), losses("alone"))
    assert result.matrix["sample_efficiency"] == sample_efficiency(losses("second"), losses("alone"))
    label = next(label for label in result.matrix["columns"] if "shift" in label)
    value = {name: stage.suites[label]["value"] for name, stage in result.stages.items()}
    assert result.matrix["intransigence"] == pytest.approx(value["alone"] - value["second"])
    assert "Relative performance" in result.report.read_text(encoding="utf-8")
