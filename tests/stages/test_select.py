"""The select stage: what it leaves is data for later stages, and what it cannot do it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from families import tiny
from temper.core.errors import StageError
from temper.models.load import save_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.result import Run
from temper.pipeline.run import run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    save_model(tiny("llama", num_hidden_layers=1), folder)
    return folder


def made(tmp_path: Path, base: Path, select: dict[str, Any], *stages: dict[str, Any]) -> Run:
    recipe = {
        "name": "mine",
        "base": str(base),
        "measure": {"keep": []},
        "stages": [{"name": "curate", "select": select}, *stages],
    }
    return run(Recipe.parse(recipe), runs=tmp_path / "runs", say=lambda text: None)


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def records(letter: str, num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}?", "completion": letter * (1 + number % 3), "task": letter} for number in range(num)]


def test_what_is_kept_trains_the_next_stage_and_is_reported(tmp_path: Path, base: Path) -> None:
    a, b = (write(tmp_path / f"{letter}.jsonl", records(letter, num)) for letter, num in (("a", 6), ("b", 9)))
    train = {"name": "adapt", "train": {"data": ["curate"], "tune": "full", "epochs": 1, "batch_size": 4}}
    result = made(tmp_path, base, {"method": "grape", "data": [a, b]}, train)
    curate, adapt = result.stages["curate"], result.stages["adapt"]
    details = curate.record["details"]
    # Nine prompts, six of which have two responses.
    assert (details["rows"], details["kept"], details["bad_rows"]) == (15, 9, 0)
    assert [part["rows"] for part in details["kept_of"]] == [6, 9]
    assert sum(part["kept"] for part in details["kept_of"]) == 9 and details["kept_of"][1]["kept"] >= 3
    assert adapt.record["details"]["rows"] == 9

    table = pyarrow.parquet.read_table(curate.folder / "scores.parquet").to_pydict()
    assert list(table) == ["file", "line", "score", "kept"] and sum(table["kept"]) == 9
    least, *_, greatest = details["scores"]["kept"]
    kept = [score for score, is_kept in zip(table["score"], table["kept"], strict=True) if is_kept]
    assert (min(kept), max(kept)) == (least, greatest)

    again = made(tmp_path, base, {"method": "grape", "data": [a, b]}, train)
    assert again.stages["curate"].record["finished"] == curate.record["finished"]


def test_rows_keep_their_columns_and_get_their_score(tmp_path: Path, base: Path) -> None:
    from temper.data.rows import Rows

    path = write(tmp_path / "a.jsonl", records("a", 6))
    select = {"method": {"random": {"keep": 0.5}}, "data": [path], "column": "worth"}
    curate = made(tmp_path, base, select).stages["curate"]
    assert curate.record["models"] == [], "a random choice looks at no model"
    rows = list(Rows.map_file(curate.folder / "data.arrow", ""))
    assert [row.columns["task"] for row in rows] == ["a"] * 3
    table = pyarrow.parquet.read_table(curate.folder / "scores.parquet").to_pydict()
    scores = dict(zip(table["line"], table["score"], strict=True))
    assert [row.columns["worth"] for row in rows] == [scores[row.origin.line] for row in rows]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"method": "grape", "data": ["text.jsonl"]}, "'grape' cannot work with rows of format text"),
        ({"method": "random", "data": ["a.jsonl"], "column": "task"}, "has a column 'task' already"),
    ],
)
def test_what_it_cannot_do_it_says(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, select: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", records("a", 6))
    write(tmp_path / "text.jsonl", [{"text": "some words"}])
    with pytest.raises(StageError, match=message):
        made(tmp_path, base, select)
