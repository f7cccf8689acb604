"""Keys: a changed setting changes the stage's own key and those of what follows from it, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_methods import FakeTrain, known_fakes  # noqa: F401 (a fixture)
from families import tiny
from temper.core import code
from temper.core.errors import SettingError
from temper.models.load import save_model
from temper.pipeline.base import Base
from temper.pipeline.keys import Planned, plan
from temper.pipeline.recipe import Recipe
from temper.pipeline.shelf import Shelf

WRITTEN: dict[str, Any] = {
    "base": "lab:tiny",
    "seed": 3,
    "stages": [
        {"name": "first", "train": {"data": ["lab/reverse"], "tune": {"lora": {"rank": 4}}, "steps": 10}},
        {"name": "second", "train": {"data": ["lab/sort"], "retain": [{"replay": {"of": "lab/copy"}}]}},
        {"name": "beside", "train": {"from": "base", "data": ["lab/shift"], "lr": 1e-3}},
        {"name": "merged", "merge": {"method": "linear", "of": ["second", "beside"]}},
    ],
}
LEARNING_RATES = (("a", 1e-3), ("b", 2e-3))
FOLLOWERS = {"first": {"first", "second", "merged"}, "second": {"second", "merged"}, "beside": {"beside", "merged"}}


def planned(written: dict[str, Any], base_key: str = "base") -> dict[str, Planned]:
    return {stage.name: stage for stage in plan(Recipe.parse(written), base_key)}


def keys(written: dict[str, Any], base_key: str = "base") -> dict[str, str]:
    return {name: stage.key for name, stage in planned(written, base_key).items()}


def changed(written: dict[str, Any], base_key: str = "base") -> set[str]:
    before, after = keys(WRITTEN), keys(written, base_key)
    return {name for name in before if before[name] != after[name]}


def with_change(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(json.dumps(WRITTEN))
    change(written)
    return written


def set_in(stage: int, key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda written: written["stages"][stage]["train"].update({key: value})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_in(0, "lr", 5e-4), FOLLOWERS["first"]),
        (set_in(0, "tune", {"lora": {"rank": 5}}), FOLLOWERS["first"]),
        (set_in(0, "data", [{"lab": {"skill": "reverse", "num": 7}}]), FOLLOWERS["first"]),
        (set_in(1, "retain", [{"replay": {"of": "lab/last"}}]), FOLLOWERS["second"]),
        (set_in(1, "retain", []), FOLLOWERS["second"]),
        (set_in(2, "lr", 2e-3), FOLLOWERS["beside"]),
        (set_in(2, "from", "first"), FOLLOWERS["beside"]),
        (lambda w: w["stages"][3]["merge"].update(of=["beside", "second"]), {"merged"}),
        (lambda w: w.update(seed=4), {"first", "second", "beside", "merged"}),
        (lambda w: w.update(on_bad_rows="skip"), {"first", "second", "beside", "merged"}),
        (lambda w: w.update(measure={"gain": ["lab/add"], "shots": 0}), set()),
        (lambda w: w["stages"][0].update(gate=0.1), set()),
        (lambda w: w.update(name="other"), set()),
        (lambda w: w.update(base="elsewhere"), set()),
        # A default that is written out is no change.
        (set_in(2, "tune", {"lora": {"rank": 8}}), set()),
    ],
)
def test_what_a_change_changes(change: Callable[[dict[str, Any]], Any], expected: set[str]) -> None:
    assert changed(with_change(change)) == expected


def test_another_base_changes_all() -> None:
    assert changed(WRITTEN, "other") == {"first", "second", "beside", "merged"}


def test_names_of_stages_do_not_count() -> None:
    text = json.dumps(WRITTEN)
    for old, new in (("second", "zweite"), ("beside", "daneben"), ("first", "erste"), ("merged", "alles")):
        text = text.replace(f'"{old}"', f'"{new}"')
    assert list(keys(json.loads(text)).values()) == list(keys(WRITTEN).values())


def test_a_stage_may_be_called_like_a_method() -> None:
    text = json.dumps(WRITTEN).replace('"second"', '"adamw"').replace('"beside"', '"cosine"')
    assert list(keys(json.loads(text)).values()) == list(keys(WRITTEN).values())


def test_what_is_known_of_a_stage() -> None:
    stages = planned(WRITTEN)
    assert stages["second"].models == ("first",) and stages["second"].previous == "first"
    assert stages["beside"].models == ("base",) and stages["beside"].previous == "base"
    assert stages["merged"].models == ("second", "beside", "base") and stages["merged"].previous == "beside"
    assert list(stages["second"].sources) == ["lab/sort", "lab/copy"]


def test_data_counts_by_content_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n')
    written = {
        "base": "x",
        "stages": [{"name": name, "train": {"data": [str(file)], "objective": "lm"}} for name in ("a", "b")],
    }
    before = keys(written)
    assert keys(written) == before
    file.write_text('{"text": "two"}\n')
    after = keys(written)
    assert before["a"] != after["a"] and before["b"] != after["b"]
    from temper.data.sources.file import FileSource

    calls: list[int] = []
    original = FileSource.fingerprint
    monkeypatch.setattr(FileSource, "fingerprint", lambda self: calls.append(1) or original(self))
    keys(written)
    assert len(calls) == 1


@pytest.mark.usefixtures("known_fakes")
def test_a_changed_method_makes_a_new_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"base": "x", "stages": [{"name": "a", "fake_train": {"calls": "c"}}]}
    before = keys(written)
    original = code._source
    monkeypatch.setattr(
        code, "_source", lambda module: original(module) + "# changed" * (module == FakeTrain.__module__)
    )
    assert keys(written) != before


@pytest.mark.usefixtures("known_fakes")
def test_a_data_stage_counts_by_its_key() -> None:
    def written(num: int, name: str) -> dict[str, Any]:
        select = {"name": name, "fake_select": {"num": num, "calls": "c"}}
        return {"base": "x", "stages": [select, {"name": "a", "fake_train": {"calls": "c", "data": [name]}}]}

    assert keys(written(3, "curate"))["a"] == keys(written(3, "select"))["a"] != keys(written(4, "curate"))["a"]
    assert planned(written(3, "curate"))["a"].data == ("curate",)


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            random.shuffle(items)
            return {key: shuffled(item) for key, item in items}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert changed(shuffled(WRITTEN)) == set()


NUMBERS = {"lr": 1e-7, "steps": 77, "micro_tokens": 77, "max_length": 77, "clip": 7.7, "spike": 7.7, "seed": 77}


@settings(max_examples=25)
@given(st.integers(0, 2), st.sampled_from(sorted(NUMBERS)))
def test_any_changed_setting_changes_the_stage_and_its_followers(stage: int, key: str) -> None:
    name = WRITTEN["stages"][stage]["name"]
    assert changed(with_change(set_in(stage, key, NUMBERS[key]))) == FOLLOWERS[name]


def test_a_model_that_a_method_asks_counts_and_is_not_what_the_stage_starts_from() -> None:
    def with_reference(name: str) -> Planned:
        stages = [
            *({"name": n, "train": {"from": "base", "data": ["lab/reverse"], "lr": lr}} for n, lr in LEARNING_RATES),
            {
                "name": "now",
                "train": {"from": "a", "data": ["lab/pairs"], "objective": {"dpo": {"reference": name}}},
            },
        ]
        return planned({"base": "lab:tiny", "stages": stages})["now"]

    asked = {name: with_reference(name) for name in ("start", "a", "b", "base")}
    assert asked["start"].models == ("a",) == asked["a"].models
    assert asked["b"].models == ("a", "b") and asked["base"].models == ("a", "base")
    assert {stage.previous for stage in asked.values()} == {"a"}
    assert len({stage.key for stage in asked.values()}) == 4
    with pytest.raises(SettingError, match="'c' is no stage before this one"):
        with_reference("c")


def test_a_teacher_from_elsewhere_counts_by_its_content_and_is_loaded(tmp_path: Path) -> None:
    def with_teacher(path: str) -> Planned:
        train = {"data": ["lab/reverse"], "objective": {"distill": {"teacher": path}}}
        return planned({"base": "lab:tiny", "stages": [{"name": "student", "train": train}]})["student"]

    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        save_model(tiny("llama", seed=seed), tmp_path / name)
    one, same, other = (with_teacher(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one.models == ("base",) and one.previous == "base" and one.key != other.key
    # The path is a setting like any other: written otherwise, it is another stage.
    assert one.key != same.key
    save_model(tiny("llama", seed=2), tmp_path / "one")
    assert with_teacher(str(tmp_path / "one")).key != one.key
    loaded = Shelf(Base(path="lab:tiny"), tmp_path).load(str(tmp_path / "other"))
    assert torch.equal(next(loaded.module.parameters()), next(tiny("llama", seed=2).module.parameters()))
