"""Comparisons: what is varied, that all have one budget, and that a second or a killed one repeats nothing."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families import tiny
from temper.core.errors import SettingError
from temper.models.load import save_model
from temper.pipeline import compare as comparing
from temper.pipeline.compare import compare
from temper.pipeline.comparing import Compare, Length, RateSearch
from temper.pipeline.document import Document, parse_document, read_document
from temper.pipeline.recipe import Recipe
from temper.pipeline.vary import find_settings, read_vary, split_values
from temper.tune.base import Tune
from temper.tune.init.base import LowRankInit

RECIPE: dict[str, Any] = {
    "base": "lab:nano",
    "measure": {"gain": ["lab/reverse"], "keep": ["lab/copy", "lab/shift"], "examples": 8, "shots": 0},
    "stages": [{"name": "adapt", "train": {"data": ["lab/reverse"], "tune": "lora", "steps": 3, "batch_size": 4}}],
}
VARY = {"train.tune": [{"lora": {"rank": 2}}, "full", {"lora": {"rank": 4096}}]}
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text("ab,:[]{}'\" ", max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inside, max_size=3),
    max_leaves=5,
)


def document(**changes: Any) -> Document:
    return Document({**copy.deepcopy(RECIPE), "name": "mine", **changes})


# What is varied.


@settings(max_examples=200, deadline=None)
@given(st.lists(plain, min_size=1, max_size=4))
def test_values_split_at_top_level_commas_only(values: list[Any]) -> None:
    assert read_vary([f"train.x={','.join(json.dumps(value) for value in values)}"]) == {"train.x": values}


def test_values_are_yaml_and_a_key_may_be_given_twice() -> None:
    assert split_values("{lora: {rank: 4, init: eva}}, full,[a,b]") == ["{lora: {rank: 4, init: eva}}", "full", "[a,b]"]
    assert read_vary(["train.lr=1e-3,0.01", "train.lr=1"]) == {"train.lr": [1e-3, 0.01, 1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.tune", "says not what varies; write KEY=a,b"),
        ("=lora", "says not what varies"),
        ("train.tune=lora,", "has an empty value"),
        ("train.tune={lora: {rank: 4}", "lacks a closing '}'"),
        ("train.tune=[lora}", "closes with '}' what is not open"),
        ("train.tune='lora", 'lacks a closing "\'"'),
    ],
)
def test_a_vary_that_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(SettingError) as error:
        read_vary([text])
    assert said in str(error.value) and text.partition("=")[2] in str(error.value)


def test_settings_are_all_combinations_each_an_ordinary_recipe() -> None:
    vary = {"train.tune": ["full", {"lora": {"rank": 4}}], "stages.adapt.train.optimizer": ["adamw", "galore"]}
    found = find_settings(document(), vary)
    assert [setting.label for setting in found] == [
        "full + adamw", "full + galore", "lora (rank 4) + adamw", "lora (rank 4) + galore",
    ]  # fmt: skip
    assert [setting.slug for setting in found][-1] == "lora-rank-4-galore"
    for setting in found:
        train = Recipe.parse(copy.deepcopy(document()), setting.overrides).stages[0].stage.written()["train"]
        assert [next(iter(train[name])) for name in ("tune", "optimizer")] == [
            "full" if "full" in setting.label else "lora", setting.label.rpartition(" ")[2],
        ]  # fmt: skip


def test_a_kind_of_stage_stands_for_every_stage_of_it() -> None:
    (adapt,) = copy.deepcopy(RECIPE["stages"])
    (setting,) = find_settings(document(stages=[adapt, {**adapt, "name": "again"}]), {"train.tune": ["hft"]})
    assert setting.overrides == ('stages[0].train.tune="hft"', 'stages[1].train.tune="hft"')


def test_all_is_every_method_with_its_example_and_what_is_equal_is_one_setting() -> None:
    found = find_settings(document(), {"train.tune": ["all", {"lora": {"init": "all"}}, "lora"]})
    labels = [setting.label for setting in found]
    values = [setting.values["train.tune"] for setting in found]
    names = [next(iter(value)) if isinstance(value, dict) else value for value in values]
    assert set(names) == set(Tune.methods())
    inits = set(LowRankInit.methods()) - {"kaiming"}  # which is the default, and so `lora`
    started = [value["lora"]["init"] for value in values if isinstance(value, dict) and "init" in value.get("lora", {})]
    assert {init if isinstance(init, str) else next(iter(init)) for init in started} == inits
    assert len(labels) == len(set(labels)) == len(Tune.methods()) + len(inits)
    for setting in found:
        value = setting.values["train.tune"]
        if isinstance(value, dict) and "init" not in str(value):
            assert value == {name: dict(Tune.methods()[name].example) for name in value}
    retained = find_settings(document(), {"train.retain": ["all", []]})
    assert all(isinstance(setting.values["train.retain"], list) for setting in retained)
    assert retained[-1].label == "no retain"


def test_what_cannot_be_combined_is_a_setting_with_its_reason() -> None:
    found = find_settings(document(), {"train.tune": ["lora", "hft"], "train.tune.lora.rank": [2, 4]})
    assert [bool(setting.problem) for setting in found] == [False, False, True, True]
    assert "tune" in found[2].problem and "hft" in found[2].problem


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"train.tune": ["lora", "lorra"]}, "train.tune: 'lorra' is no tune method; did you mean 'lora'?"),
        ({"train.tune": [{"lora": {"rank": 0}}, "full"]}, "rank: 0 should be greater than 0"),
        ({"train.tunes": ["lora"]}, "unknown key; did you mean 'tune'?"),
        ({"trein.tune": ["lora"]}, "trein.tune' is no setting of a recipe; did you mean 'train'?"),
        ({"merge.method": ["linear"]}, "the recipe has no such stage"),
        ({"stages.adopt.train.lr": [1e-3]}, "did you mean 'adapt'?"),
        ({"train": ["lora"]}, "name one of its settings, as in train.tune"),
        ({"seed": [1, 2]}, "is the same for all settings of a comparison"),
        ({"train.lr": ["all"]}, "vary.train.lr: 'all' stands for every method, and no method fits there"),
    ],
)
def test_a_key_or_value_that_fits_nowhere_is_an_error(vary: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(SettingError) as error:
        find_settings(document(), vary)
    assert said in str(error.value)


# How it is measured.


def test_budgets_are_read() -> None:
    assert Length.model_validate("tokens=2M").given == {"tokens": 2_000_000}
    assert Length.model_validate({"tokens": "1.5k"}).given == {"tokens": 1500}
    assert Length.model_validate("epochs=0.5").given == {"epochs": 0.5}
    for wrong, said in (
        ("2M", "is no budget"),
        ("tokens=2m", "is no count"),
        ({}, "is no budget"),
        ("bytes=1", "bytes"),
    ):
        with pytest.raises(ValueError, match=said):
            Length.model_validate(wrong)
    with pytest.raises(ValueError, match="more than one budget"):
        Length.model_validate({"tokens": 5, "steps": 5})


def test_rates_are_spaced_evenly_around_a_settings_own() -> None:
    assert RateSearch(num=3, ratio=4, times=2).factors() == [0.5, 2.0, 8.0]
    assert RateSearch(num=4, ratio=4).factors() == [0.125, 0.5, 2.0, 8.0]
    assert RateSearch.model_validate(1).factors() == [1.0]


def test_a_recipe_may_say_what_is_compared_and_runs_as_it_stands(root: Path) -> None:
    stage = "{name: a, train: {data: [lab/copy]}}"
    text = f"base: lab:tiny\nstages: [{stage}]\ncompare: {{vary: {{train.tune: lora}}, seds: 3}}"
    with pytest.raises(SettingError, match=r"mine:3: compare.seds: unknown key; did you mean 'seeds'\?"):
        Recipe.parse(parse_document(text, "mine"))
    recipe = Recipe.load(root / "recipes" / "compare-tuners.yaml")
    assert recipe.compare is not None and Recipe.parse(recipe.model_dump(mode="json")) == recipe
    written = read_document(root / "recipes" / "compare-tuners.yaml")
    del written.value["compare"]
    names = {str(setting.values["train.tune"]) for setting in find_settings(written, recipe.compare.vary)}
    assert all(any(name in text for text in names) for name in Tune.methods())


def write_recipe(folder: Path) -> Path:
    save_model(tiny("llama", num_hidden_layers=1), folder / "base")
    own = {"vary": VARY, "seeds": 2, "budget": "tokens=150", "lr_search": 2, "jobs": 2}
    recipe = {**RECIPE, "base": str(folder / "base"), "compare": own}
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    return folder / "mine.yaml"


def figures(folder: Path) -> Any:
    """Everything of a comparison that does not depend on the machine's haste."""
    record = json.loads((folder / "compare.json").read_text())
    hasty = ("seconds", "memory_bytes", "peak_memory_bytes")
    for setting in record["settings"]:
        del setting["front"]
        for run in [*setting["search"], *setting["runs"], setting["mean"]]:
            for name in hasty:
                run.pop(name, None)
    return record["settings"]


def test_a_comparison_and_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    folder = compare(recipe, runs=tmp_path / "whole", say=lambda text: None)
    lora, full, refused = json.loads((folder / "compare.json").read_text())["settings"]
    assert "4096 exceeds the smaller side" in refused["problem"] and refused["mean"]["gain"] is None
    for setting in (lora, full):
        runs = setting["runs"]
        assert [run["seed"] for run in setting["search"]] == [0, 0] and [run["seed"] for run in runs] == [1, 2]
        rates = [run["lr"][0] for run in setting["search"]]
        assert rates[1] == pytest.approx(3 * rates[0], rel=1e-3) and setting["lr"][0] in rates
        best = max(setting["search"], key=lambda run: (run["gain"], -run["loss"]))
        assert setting["lr"] == best["lr"]
        kept = [run["suites"][name] for run in runs[:1] for name in ("lab/copy", "lab/shift")]
        falls = [suite["base"] - suite["value"] for suite in kept]
        assert runs[0]["loss"] == pytest.approx(sum(falls) / 2) and runs[0]["worst"] == max(falls)
        assert all(run["memory_bytes"] >= 0 and run["seconds"] > 0 and run["delta_bytes"] > 0 for run in runs)
        searched = Recipe.parse(json.loads((folder / setting["search"][0]["name"] / "run.json").read_text())["recipe"])
        assert searched.measure.half == "first", "what is chosen by is not what is reported"
        reported = Recipe.parse(json.loads((folder / runs[0]["name"] / "run.json").read_text())["recipe"])
        assert reported.measure.half == "second"
    # One budget: with one seed all see the same tokens.
    assert [run["tokens"] for run in lora["runs"]] == [run["tokens"] for run in full["runs"]]
    assert all(150 <= run["tokens"] < 200 for run in lora["runs"])
    assert lora["runs"][0]["trained"] < full["runs"][0]["trained"]
    for name in ("compare.html", "compare.md", "gain-loss.svg"):
        assert (folder / name).is_file()

    # Again: nothing is run.
    expected = figures(folder)
    started: list[Any] = []
    monkeypatch.setattr(comparing, "run_jobs", lambda jobs, num, tell: started.extend(jobs))
    compare(recipe, runs=tmp_path / "whole", say=lambda text: None)
    assert started == [] and figures(folder) == expected
    # A further setting runs only itself.
    compare(recipe, runs=tmp_path / "whole", vary={"train.tune": [*VARY["train.tune"], "hft"]}, say=lambda text: None)
    assert {job.recipe.name.partition(".")[0] for job in started} == {"hft"}
    monkeypatch.undo()

    # Killed with the first outcome: its runs end with it, and the next one comes to the same figures.
    command = [sys.executable, "-m", "temper", "compare", str(recipe), "--runs", str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        outcomes = tmp_path / "killed" / "mine-compare" / "outcomes"
        while not list(outcomes.glob("*.json")):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    left = len(list(outcomes.glob("*.json")))
    assert left < 6
    deadline = time.monotonic() + 60
    while _holders(tmp_path / "killed"):
        assert time.monotonic() < deadline, "a run goes on without the comparison that asked for it"
        time.sleep(0.05)
    folder = compare(recipe, runs=tmp_path / "killed", say=lambda text: None)
    assert figures(folder) == expected


def _holders(folder: Path) -> list[str]:
    """Return the processes that have a file open under a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        found += [process.name for file in files if file.startswith(str(folder))]
    return [name for name in found if name != str(os.getpid())]


def test_what_cannot_be_compared_at_all_is_said_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    quiet = {"runs": tmp_path / "runs", "say": lambda text: None}

    def refused(said: str, changes: dict[str, Any], **options: Any) -> None:
        path.write_text(json.dumps({**RECIPE, **changes}))
        with pytest.raises(SettingError, match=said):
            compare(path, **quiet, **options)

    vary = {"train.tune": ["lora", "full"]}
    refused("there is nothing to compare; give --vary", {})
    refused("measure.half", {"measure": {**RECIPE["measure"], "half": "first"}}, vary=vary)
    refused("measure.gain", {"measure": {"keep": ["lab/copy"]}}, vary=vary)
    export = {"name": "out", "export": {"to": str(tmp_path / "out"), "from": "base"}}
    refused("recipe has none", {"stages": [export]}, vary={"export.as": ["model"]}, budget="steps=3")
    assert not list((tmp_path / "runs").glob("*/*/run.json"))
    assert Compare.model_validate({"vary": vary}).seeds == 3
