"""Merging by held-out rows, porting and compressing as stages of one recipe, measured and done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from families import tiny
from measuring import write_rows
from temper.delta import LowRankDelta, read_delta
from temper.models.load import save_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("files")
    save_model(tiny(), folder / "base")
    save_model(tiny(seed=1), folder / "newer")
    rows = {
        name: write_rows(folder / f"{name}.jsonl", [{"prompt": f"{name}{n} ", "completion": str(n)} for n in range(24)])
        for name in ("learn", "held", "test")
    }
    train = {"data": [rows["learn"]], "tune": "lora", "lr": 1e-2, "batch_size": 8}
    by = {"perplexity": {"source": rows["held"]}}
    return {
        "name": "mix",
        "base": str(folder / "base"),
        "measure": {
            "gain": [{"perplexity": {"source": rows["test"], "name": "test"}}],
            "keep": ["intruder_dimensions"],
            "shots": 0,
        },
        "stages": [
            {"name": "one", "train": {**train, "from": "base", "steps": 4}},
            {"name": "two", "train": {**train, "from": "base", "steps": 4, "seed": 5}},
            {"name": "soup", "merge": {"method": {"greedy_soup": {"by": by}}, "of": ["one", "two"]}},
            {
                "name": "learned",
                "merge": {"method": {"learned_soup": {"data": [rows["held"]], "epochs": 1}}, "of": ["one", "two"]},
            },
            {"name": "newer", "load": {"path": str(folder / "newer")}},
            {"name": "moved", "port": {"of": "one", "onto": "newer"}},
            {"name": "small", "compress": {"method": {"compeft": {"density": 0.2}}, "of": "one"}},
        ],
    }


def test_all_is_made_measured_and_not_done_again(tmp_path: Path, recipe: dict[str, Any]) -> None:
    said: list[str] = []
    done = run(Recipe.parse(recipe), runs=tmp_path, say=said.append)
    for stage in recipe["stages"]:
        suites = done.stages[stage["name"]].suites
        assert suites["test"]["value"] > 1 and "base" in suites["intruder dimensions"]["changes"], stage["name"]
    assert done.stages["soup"].record["details"]["ingredients"]
    assert done.stages["learned"].record["details"]["coefficients"] == 2
    moved, small = (read_delta(done.stages[name].folder / "delta") for name in ("moved", "small"))
    assert isinstance(moved, LowRankDelta) and isinstance(small.plain(), LowRankDelta)
    assert done.stages["small"].record["details"]["bytes"] > 0
    assert done.model("moved").module is not None and done.model("small").module is not None
    assert not any("chooses by" in text for text in said)
    said.clear()
    run(Recipe.parse(recipe), runs=tmp_path, say=said.append)
    assert sum("done before" in text for text in said) == len(recipe["stages"])


def test_choosing_by_the_rows_that_are_scored_is_told(tmp_path: Path, recipe: dict[str, Any]) -> None:
    measured = recipe["measure"]["gain"][0]["perplexity"]["source"]
    stages = [
        recipe["stages"][0],
        {
            "name": "soup",
            "merge": {"method": {"greedy_soup": {"by": {"perplexity": {"source": measured}}}}, "of": ["one"]},
        },
    ]
    done = run(Recipe.parse({**recipe, "stages": stages}), runs=tmp_path, say=lambda text: None)
    assert any("trains on or chooses by" in text for text in done.stages["soup"].record["warnings"])
