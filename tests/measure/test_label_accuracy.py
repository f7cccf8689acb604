"""A recipe that trains a head and measures it, through the file of each stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import tiny
from temper.core.errors import DataError, SettingError
from temper.data.sources.file import FileSource
from temper.measure.base import Subject
from temper.measure.exact_match import ExactMatch
from temper.measure.label_accuracy import LabelAccuracy
from temper.models.load import save_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import run


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def texts() -> list[dict[str, object]]:
    """The class is whether the text begins with an a."""
    words = ["abc", "axe", "all", "bee", "cat", "dad", "ace", "egg", "add", "fog"]
    return [{"text": word + other, "class": int(word[0] == "a")} for word in words for other in "bcdefg"]


def test_classes_are_learnt_saved_and_measured(tmp_path: Path) -> None:
    save_model(tiny("llama"), tmp_path / "base")
    data = write(tmp_path / "texts.jsonl", texts())
    train = {
        "data": [data],
        "objective": {"classify": {"labels": [0, 1]}},
        "tune": {"lora": {"rank": 4}},
        "lr": 1e-2,
        "steps": 30,
        "batch_size": 20,
    }
    recipe = Recipe.parse(
        {
            "base": str(tmp_path / "base"),
            "measure": {"gain": [{"label_accuracy": {"source": data, "name": "texts"}}]},
            "stages": [{"name": "sorter", "train": train}],
        }
    )
    result = run(recipe, runs=tmp_path / "runs", say=lambda text: None)
    stage = result.stages["sorter"].folder
    assert {"head", "delta"} <= {path.name for path in stage.iterdir()}
    assert json.loads((stage / "head" / "head.json").read_text())["labels"] == ["0", "1"]
    suite = LabelAccuracy(source=FileSource(path=(data,)))
    trained, base = (suite.measure(Subject(result.model(name)), tmp_path) for name in ("sorter", "base"))
    assert sum(trained.scores) / len(trained.scores) > 0.95 and len(trained.scores) == 60
    assert set(base.scores) == {0.0}, "a model without a head labels nothing"
    assert trained.samples[0].output in ("0", "1") and trained.samples[0].expected in ("0", "1")
    words = write(tmp_path / "words.jsonl", [{"words": ["ab", "c"], "tags": ["0", "1"]}])
    with pytest.raises(SettingError, match="is no data for a head on texts"):
        LabelAccuracy(source=FileSource(path=(words,))).measure(Subject(result.model("sorter")), tmp_path)


def test_rows_with_labels_ask_no_question(tmp_path: Path) -> None:
    data = write(tmp_path / "texts.jsonl", texts())
    with pytest.raises(DataError, match="a row of format class asks no question"):
        ExactMatch(source=FileSource(path=(data,))).measure(Subject(tiny("llama")), tmp_path)


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", [{"text": "ab"}])
    with pytest.raises(DataError, match="a row of format text has no label"):
        LabelAccuracy(source=FileSource(path=(plain,))).measure(Subject(tiny("llama")), tmp_path)
