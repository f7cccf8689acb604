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
from temper.objectives.base import Objective
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


@settings(max_examples=200)
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
    objectives = [
        setting.values["train.objective"] for setting in find_settings(document(), {"train.objective": ["all"]})
    ]
    for name, objective in Objective.methods().items():
        assert ({name: dict(objective.example)} if objective.example else name) in objectives
    assert any(objective.example for objective in Objective.methods().values())
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


def test_a_budget_and_a_rate_are_for_what_trains_inside_of_a_stage_as_well(tmp_path: Path, monkeypatch: Any) -> None:
    """A stage of rounds trains by settings of its own."""
    jobs: list[Any] = []
    monkeypatch.setattr(comparing, "run_jobs", lambda found, num, tell: jobs.extend(found))
    data = [{"lab": {"skill": "reverse", "num": 4}}]
    grow = {"name": "grow", "rounds": {"method": "llm2llm", "data": data, "train": {"epochs": 9, "lr": 1e-2}}}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**RECIPE, "stages": [*RECIPE["stages"], grow]}))
    options: dict[str, Any] = {"seeds": 1, "budget": "steps=2", "lr_search": {"num": 2, "ratio": 4}}
    vary = {"rounds.train.tune": ["lora"]}
    compare(path, ["base=lab:nano"], vary=vary, runs=tmp_path / "runs", say=lambda text: None, **options)
    found = [job.recipe.stages[1].stage.train for job in jobs]
    assert [(own.steps, own.epochs, own.lr) for own in found] == [(2, None, 5e-3), (2, None, 2e-2)]


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


def test_the_best_rate_of_the_search_is_taken_and_a_failure_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With outcomes that are made up: `full` is best in the middle, `hft` equal at two rates, `lisa` fails at one."""
    recipe = write_recipe(tmp_path)
    gains = {"full": (0.2, 0.9, 0.5), "hft": (0.1, 0.7, 0.7), "lisa": (0.3, None, 0.2)}
    keeps = {"full": (0.0, -0.5, 0.0), "hft": (0.0, -0.5, -0.1), "lisa": (0.0, 0.0, 0.0)}
    lrs: dict[str, list[float]] = {name: [] for name in gains}
    started: list[str] = []

    def fake(jobs: Any, num: int, tell: Any) -> None:
        for job in jobs:
            name = job.recipe.name.partition(".")[0]
            started.append(name)
            lr = job.recipe.stages[0].stage.lr
            if job.recipe.measure.half == "first":
                lrs[name].append(lr)
            place = lrs[name].index(lr)
            if gains[name][place] is None:
                outcome = {"failure": {"reason": "out of reach", "is_final": name != "lisa", "is_refusal": False}}
            else:
                role = {"metric": "exact match", "unit": "share", "higher_is_better": True, "base": 0.0}
                suites = {"a": {**role, "role": "gain", "value": gains[name][place]}}
                suites["b"] = {**role, "role": "keep", "value": keeps[name][place]}
                costs = {"seconds": 1.0, "memory_bytes": 1, "trained": 1, "delta_bytes": 1, "tokens": 1, "way": job.way}
                outcome = {"result": {"suites": suites, **costs}}
            job.outcome.write_text(json.dumps({"key": job.key, **outcome}))
            tell(job, 0)

    monkeypatch.setattr(comparing, "run_jobs", fake)
    options: dict[str, Any] = {"vary": {"train.tune": list(gains)}, "lr_search": 3, "runs": tmp_path / "runs"}
    folder = compare(recipe, say=lambda text: None, **options)
    full, hft, lisa = json.loads((folder / "compare.json").read_text())["settings"]
    assert full["lr"] == [lrs["full"][1]] and not full["is_at_edge"]
    assert hft["lr"] == [lrs["hft"][2]] and hft["is_at_edge"], "of equal gains the one with less loss"
    assert lisa["lr"] == [lrs["lisa"][0]] and "out of reach" in lisa["search"][1]["failure"]
    assert full["mean"]["gain"] == {"value": 0.9, "low": 0.9, "high": 0.9} and full["mean"]["loss"]["value"] == 0.5
    assert [setting["front"] for setting in (full, hft, lisa)][1] == ["loss"]
    assert "loss" in full["front"] and "time" in full["front"] and lisa["front"] == ["loss"]
    record = json.loads((folder / "compare.json").read_text())
    assert [way["jobs"] for way in record["ways"]] == [2]
    # What failed for a reason that may pass is tried again, and nothing else.
    started.clear()
    lrs["lisa"] = lrs["lisa"][:1]
    compare(recipe, say=lambda text: None, **options)
    assert started == ["lisa"]
    # What was made beside another number of runs has other times, which nothing is marked by.
    started.clear()
    more = {**options, "vary": {"train.tune": [*gains, {"full": {"freeze": ["*norm*"]}}]}}
    gains["full-freeze-norm"], keeps["full-freeze-norm"] = gains["full"], keeps["full"]
    lrs["full-freeze-norm"], lrs["lisa"] = [], lrs["lisa"][:1]
    compare(recipe, say=lambda text: None, jobs=1, **more)
    record = json.loads((folder / "compare.json").read_text())
    assert sorted(way["jobs"] for way in record["ways"]) == [1, 2]
    assert not any("time" in setting["front"] for setting in record["settings"])
    assert "and does not compare: 1 run at a time" in (folder / "compare.md").read_text()


def test_gain_and_loss_go_by_each_suites_own_direction_and_unit(tmp_path: Path, monkeypatch: Any) -> None:
    """A perplexity that falls is a gain; what is in another unit than the first suite counts in no mean."""
    less = {"metric": "perplexity", "unit": "perplexity", "higher_is_better": False}
    more = {"metric": "exact match", "unit": "share", "higher_is_better": True}
    suites = {
        "p": {**less, "role": "gain", "value": 6.0, "base": 9.0},
        "q": {**less, "role": "gain", "value": 5.0, "base": 4.0},
        "r": {**more, "role": "gain", "value": 1.0, "base": 0.0},
        "s": {**less, "role": "keep", "value": 3.0, "base": 2.5},
        "t": {**less, "role": "keep", "value": 1.0, "base": 2.0},
        "u": {**more, "role": "keep", "value": 0.0, "base": 1.0},
    }

    def fake(jobs: Any, num: int, tell: Any) -> None:
        for job in jobs:
            result = {"suites": suites, "seconds": 1.0, "way": job.way}
            job.outcome.write_text(json.dumps({"key": job.key, "result": result}))
            tell(job, 0)

    monkeypatch.setattr(comparing, "run_jobs", fake)
    said: list[str] = []
    options: dict[str, Any] = {"lr_search": 1, "seeds": 1, "runs": tmp_path / "runs", "vary": {"train.tune": ["full"]}}
    folder = compare(write_recipe(tmp_path), say=said.append, **options)
    record = json.loads((folder / "compare.json").read_text())
    (setting,) = record["settings"]
    assert {name: setting["mean"][name]["value"] for name in ("gain", "loss", "worst")} == {
        "gain": (3.0 - 1.0) / 2, "loss": (0.5 - 1.0) / 2, "worst": 0.5,
    }  # fmt: skip
    assert record["roles"]["gain"]["suites"] == ["p", "q"] and record["roles"]["keep"]["others"] == ["u"]
    assert "gain +1.000, keep +0.250" in said[-1]


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
    refused("there is nothing to compare; give --vary", {"compare": {"seeds": 2}})
    halved = {"measure": {**RECIPE["measure"], "half": "first"}, "compare": {"lr_search": {"times": 40}}}
    refused("measure.half", halved, vary=vary)  # the recipe says how to search, and the command what varies
    refused("measure.gain", {"measure": {"keep": ["lab/copy"]}}, vary=vary)
    export = {"name": "out", "export": {"to": str(tmp_path / "out"), "from": "base"}}
    refused("recipe has none", {"stages": [export]}, vary={"export.as": ["model"]}, budget="steps=3")
    steps = {"vary": {"train.steps": [2, 4]}, "budget": "steps=3"}
    refused("vary: 'train.steps' is how long a stage trains, which the budget sets .*3.* take the budget", {}, **steps)
    first = {"vary": {f"stages.{RECIPE['stages'][0]['name']}.train.lr": [1e-3, 1e-2]}, "lr_search": 3}
    refused("lr_search: 3 searches what vary lists already: stages.adapt.train.lr; search none", {}, **first)
    assert not list((tmp_path / "runs").glob("*/*/run.json"))
    assert Compare.model_validate({"vary": vary}).seeds == 3
