"""The probe says what combines, what is refused and what is broken, and knows no method beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest
from pydantic import Field

from temper.core.errors import MissingExtra, SettingError
from temper.core.methods import AXES, Method
from temper.data.example import Format
from temper.data.source import Source
from temper.data.sources.file import FileSource
from temper.decode.base import Decode
from temper.mix.base import Mix
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.pipeline.probe import (
    Probe,
    Trial,
    combinations_page,
    find_places,
    load_combinations,
    probe,
    write_combinations,
)
from temper.pipeline.samples import lay_out
from temper.retain.base import Retain, Retention, Share
from temper.select.base import Selector
from temper.signals.setup import Setup
from temper.stages.train import Train
from temper.tune.base import Tune


class Picky(Retain, name="picky"):
    """Refuses one kind of tuning, and says so."""

    def build(self, model: Model, setup: Setup) -> Retention:
        if any("lora" in name for name, _ in setup.trained):
            raise SettingError("retain.picky", "lora", "adds to the weights", "take another tuner")
        return Retention()


class Broken(Retain, name="broken"):
    """Fails without saying why, with one kind of tuning."""

    def build(self, model: Model, setup: Setup) -> Retention:
        if any("lora" in name for name, _ in setup.trained):
            raise ZeroDivisionError("division by zero")
        return Retention()


class Bare(Retain, name="bare"):
    """Has a setting without default and no example."""

    strength: float = Field(description="how strongly")


class Absent(Retain, name="absent"):
    """Needs a package that is not there."""

    def shares(self) -> Sequence[Share]:
        raise MissingExtra("nowhere", "none", "absent")


FAKES = (Picky, Broken, Bare, Absent)
for _fake in FAKES:
    del _fake._registered[_fake.method_name]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    yield Probe(tmp_path_factory.mktemp("probe"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for fake in FAKES:
        monkeypatch.setitem(fake._registered, fake.method_name, fake)


def test_every_axis_that_a_recipe_takes_has_its_place(running: Probe) -> None:
    places = find_places()
    shown = {axis: (place.host.axis, place.host.method_name, place.field) for axis, place in places.items()}
    assert shown["tune"] == ("stage", "train", "tune") and not places["tune"].is_list
    assert shown["retain"] == ("stage", "train", "retain") and places["retain"].is_list
    assert shown["source"] == ("stage", "train", "data")
    assert shown["select"] == ("stage", "select", "method")
    assert shown["merge"] == ("stage", "merge", "method")
    assert shown["suite"] == ("stage", "evaluate", "gain")
    assert shown["skill"] == ("source", "lab", "skill"), "inside a method that has a place itself"


def test_data_is_made_before_the_training_and_models_are_merged_after_it(running: Probe) -> None:
    recipe = running.recipe([Selector.methods()["grape"], Tune.methods()["full"]])
    assert [step["name"] for step in recipe["stages"]] == ["select", "train"]
    assert recipe["stages"][1]["train"]["data"][0] == "select" and recipe["stages"][1]["train"]["tune"] == {"full": {}}
    assert recipe["stages"][0]["select"]["method"] == {"grape": {}}


def test_a_source_is_what_a_stage_makes_data_of_and_the_training_keeps_its_other_source(running: Probe) -> None:
    recipe = running.recipe([Selector.methods()["grape"], Source.methods()["file"]])
    assert recipe["stages"][0]["select"]["data"][0] == {"file": {"path": "rows.jsonl"}}
    assert recipe["stages"][1]["train"]["data"] == ["select", Train.example["data"][1]]


def test_a_stage_that_an_example_names_is_there(running: Probe) -> None:
    recipe = running.recipe([Source.methods()["stage"]])
    assert [step["name"] for step in recipe["stages"]] == ["select", "train"]
    assert recipe["stages"][1]["train"]["data"] == ["select", Train.example["data"][1]]


def test_the_stage_around_a_method_gets_what_the_method_needs_beside_it(running: Probe) -> None:
    decode = running.recipe([Decode.methods()["emulated_fine_tuning"]])["stages"][1]["decode"]
    assert decode == {"of": ["base", "train", "base"], "method": {"emulated_fine_tuning": {}}}


@pytest.mark.parametrize(
    "names",
    [
        "source/file+objective/dpo",  # rows that the lab makes too
        "source/file+objective/gist_embed",  # and rows that it does not
        "objective/classify+suite/label_accuracy",  # both on texts
        "objective/tag+suite/label_accuracy",  # both on words
        "objective/dpo+suite/label_accuracy",  # each on its own
        "objective/dpo+suite/multiple_choice",
        "source/python+select/grape",
        "source/hub+mix/fixed",
        "source/stage+mix/fixed",
        "stage/load+stage/port",
        "suite/function+decode/emulated_fine_tuning",
        "block_score/outlier+optimizer/galore",
    ],
)
def test_what_examples_name_is_there_in_a_format_that_fits(running: Probe, names: str) -> None:
    methods = [AXES[name.partition("/")[0]].methods()[name.partition("/")[2]] for name in names.split("+")]
    trial = running.run(*methods)
    assert (trial.outcome, trial.reason) == ("works", "")


def test_a_reason_names_files_from_the_probes_folder_on(running: Probe) -> None:
    """LESS needs Adam's averages, and names the snapshot that has none."""
    trial = running.run(Selector.methods()["less"], AXES["optimizer"].methods()["lion"])
    assert trial.outcome == "refused" and "'run/train/trajectory/" in trial.reason
    assert str(running.folder) not in trial.reason and not (running.folder / "run").exists()


def test_laying_out_draws_no_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path)
    assert (tmp_path / "rows" / "dataset_info.json").is_file() and capfd.readouterr().err == ""


def test_rows_of_every_format_lie_in_the_probes_folder(running: Probe, tmp_path: Path) -> None:
    path = str(running.folder / "rows.jsonl")
    for format in get_args(Format):
        rows = FileSource(path=(path,), format=format).open("train", tmp_path)
        assert len(rows) == 16 and {row.format for row in rows} == {format} and not rows.bad


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("tune", "retain", "outcome", "reason"),
    [
        ("full", "picky", "works", ""),
        ("lora", "picky", "refused", "retain.picky: 'lora' adds to the weights; take another tuner"),
        ("full", "broken", "works", ""),
        ("lora", "broken", "defect", "ZeroDivisionError: division by zero"),
        ("full", "absent", "untried", "absent needs nowhere"),
    ],
)
def test_a_pair_works_or_is_refused_or_is_a_defect(
    running: Probe, tune: str, retain: str, outcome: str, reason: str
) -> None:
    trial = running.run(Tune.methods()[tune], Retain.methods()[retain])
    assert trial.methods == (f"tune/{tune}", f"retain/{retain}")
    assert trial.outcome == outcome and reason in trial.reason


def test_rows_have_the_format_that_all_methods_take(running: Probe) -> None:
    """Language modelling takes running text, GRAPE takes none: both take prompts with completions."""
    grape = Selector.methods()["grape"]
    for objective in Objective.methods().values():
        trial = running.run(objective, grape)
        has_common = bool(objective.formats & grape.formats)
        assert trial.outcome == ("works" if has_common else "refused"), trial


@pytest.mark.usefixtures("known")
def test_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen: list[type[Method]] = [
        *(Tune.methods()[name] for name in ("full", "lora")),
        *(Retain.methods()[fake.method_name] for fake in FAKES),
        Mix.methods()["temperature"],
    ]
    monkeypatch.setattr(Probe, "methods", lambda self: chosen)
    trials = probe()
    pairs = {trial.methods: trial for trial in trials if len(trial.methods) == 2}
    assert len(pairs) == 2 * 4 + 2 + 4, "every pair of different axes once"
    outcomes = {methods: trial.outcome for methods, trial in pairs.items()}
    assert outcomes[("tune/full", "mix/temperature")] == outcomes[("tune/lora", "mix/temperature")] == "works"
    assert {outcome for methods, outcome in outcomes.items() if "retain/bare" in methods} == {"untried"}
    alone = {trial.methods[0]: trial for trial in trials if len(trial.methods) == 1}
    assert alone["retain/bare"].outcome == "untried" and "its strength has no default" in alone["retain/bare"].reason
    # Alone a method runs beside the defaults of the rest, here LoRA; with another choice it may do.
    assert alone["retain/broken"].outcome == "defect" and outcomes[("tune/full", "retain/broken")] == "works"
    assert alone["retain/picky"].outcome == "refused" and outcomes[("retain/picky", "mix/temperature")] == "refused"

    page, data = write_combinations(trials, tmp_path / "docs" / "combinations.md")
    text = page.read_text(encoding="utf-8")
    assert "## tune and mix" in text and "All 2 combine: `full`, `lora` with `temperature`." in text
    assert "- ? `retain/bare`: its strength has no default, and it declares no `example`" in text
    assert [trial.methods for trial in load_combinations(data)] == [trial.methods for trial in trials]

    some = probe("mix")
    assert {trial.methods for trial in some if len(trial.methods) == 2} == {m for m in pairs if "mix/temperature" in m}
    two = probe("tune+mix")
    assert {trial.methods for trial in two if len(trial.methods) == 2} == {
        ("tune/full", "mix/temperature"),
        ("tune/lora", "mix/temperature"),
    }
    with pytest.raises(SettingError, match="'mixed' is no method and no axis with a place in a recipe"):
        probe("mixed")
    with pytest.raises(SettingError, match=r"'lora\+full' names nothing but tune on both sides, and .* name two of"):
        probe("lora+full")


def test_the_page_shows_marks_and_groups_equal_reasons() -> None:
    trials = [
        Trial(("tune/full", "retain/ewc"), "works"),
        Trial(("tune/lora", "retain/ewc"), "refused", "ewc: needs | whole weights; use full"),
        Trial(("tune/bone", "retain/ewc"), "refused", "ewc: needs | whole weights; use full"),
        Trial(("tune/lora", "retain/kl"), "defect", "KeyError: 'x'"),
    ]
    page = combinations_page(trials)
    assert "|  | ewc | kl |\n|---|---|---|\n| full | ✓ |  |\n| lora | - | ✗ |\n| bone | - |  |" in page
    assert "- `lora` + `ewc`, `bone` + `ewc`: - ewc: needs \\| whole weights; use full" in page
    assert "- `lora` + `kl`: ✗ KeyError: 'x'" in page
    assert "4 pairs: 1 works, 2 refused, 1 defect, 0 untried." in page
