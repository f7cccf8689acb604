"""The probe says what combines, what is refused and what is broken, and knows no method beforehand."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import Field
from pydantic_core import PydanticCustomError

from temper.core.errors import MissingExtra, SettingError
from temper.core.methods import AXES, Method, methods_in
from temper.data.example import Format
from temper.data.source import Source
from temper.data.sources.file import FileSource
from temper.decode.base import Decode
from temper.mix.base import Mix
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.pipeline.places import Draft, ExclusiveError, axes_of, find_places
from temper.pipeline.probe import Probe, Trial, combinations_page, load_combinations, probe, write_combinations
from temper.pipeline.recipe import Recipe
from temper.pipeline.samples import lay_out
from temper.retain.base import Retain, Retention, Share
from temper.select.base import Selector
from temper.signals.setup import Setup
from temper.stages.base import Stage
from temper.stages.train import Train
from temper.synthesize.teachers.base import Teacher
from temper.tune.base import Tune
from temper.tune.lisa import LISA
from temper.tune.lora import LoRA
from temper.tune.score.base import BlockScore
from temper.verify.base import Verifier


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


class Scored(LoRA, name="scored"):
    """Takes two kinds of methods that no method of the package takes together."""

    score: BlockScore | None = Field(None, description="what scores blocks")


class Wide(LISA, name="wide"):
    """Takes more kinds of methods than that, but not those two."""

    teacher: Teacher | None = Field(None, description="who teaches")
    verifier: Verifier | None = Field(None, description="who verifies")


FAKES = (Picky, Broken, Bare, Absent)
for _fake in (*FAKES, Scored, Wide):
    del _fake._registered[_fake.method_name]


def named(names: str) -> list[type[Method]]:
    """Return the methods that are written as `axis/name+axis/name`."""
    split = [name.split("/") for name in names.split("+")]
    return [AXES[axis].methods()[name] for axis, name in split]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    yield Probe(tmp_path_factory.mktemp("probe"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for fake in FAKES:
        monkeypatch.setitem(fake._registered, fake.method_name, fake)


def test_every_axis_that_a_recipe_takes_has_its_place(running: Probe) -> None:
    places = find_places()
    first = {axis: own[0] for axis, own in places.items()}
    shown = {axis: (place.host.axis, place.host.method_name, place.field) for axis, place in first.items()}
    assert shown["tune"] == ("stage", "train", "tune") and not first["tune"].is_list
    assert shown["retain"] == ("stage", "train", "retain") and first["retain"].is_list
    assert shown["source"] == ("stage", "train", "data")
    assert shown["select"] == ("stage", "select", "method")
    assert shown["merge"] == ("stage", "merge", "method")
    assert shown["suite"] == ("stage", "evaluate", "gain")
    assert shown["skill"] == ("source", "lab", "skill"), "inside a method that has a place itself"
    assert [place.host.method_name for place in places["init"]] == ["dora", "lora"], "all of them are known"


def unlike(methods: Sequence[type[Method]]) -> list[type[Method]]:
    """Return two at most of those that are alike in all that a recipe is made by: 18 skills are placed as one is."""
    alike: dict[tuple[Any, ...], list[type[Method]]] = defaultdict(list)
    for method in methods:
        alike[method.axis, tuple(axes_of(method)), repr(method.example), repr(method.beside)].append(method)
    return [method for some in alike.values() for method in some[:2]]


def ways_into(method: type[Method], axis: str) -> set[type[Method]]:
    """Return the methods of an axis of which one stands in a recipe where a method does: itself, or what takes it."""
    if method.axis == axis:
        return {method}
    hosts = {host for known in AXES.values() for host in known.methods().values() if host.axis != method.axis}
    takers = {host for host in hosts if method.axis in {taken for taken, _, _ in axes_of(host)}}
    assert {host.axis for host in takers} == {axis}, "it has a place elsewhere"
    return takers


def check_exclusive(pair: Sequence[type[Method]], reason: str) -> None:
    """Check by the fields' types alone that a place holds one method, and that none is both of a pair."""
    found = re.fullmatch(r"both stand at (\w+)\.(\w+): (.+)", reason)
    assert found, reason
    ((axis, _, is_list),) = [it for it in axes_of(Stage.methods()[found[1]]) if it[1] == found[2]]
    one, other = (ways_into(method, axis) for method in pair)
    assert not is_list and one and other and not one & other, (pair, reason)
    said = [
        f"{method.axis} only in {' or '.join(sorted(host.method_name for host in ways))}"
        for method, ways in zip(pair, (one, other), strict=True)
        if method.axis != axis
    ]
    assert found[3] == " and ".join(said)


def test_a_recipe_holds_both_of_a_pair_or_it_is_true_that_none_can(running: Probe) -> None:
    pairs = [two for two in itertools.combinations(unlike(running.methods()), 2) if two[0].axis != two[1].axis]
    exclusive = 0
    for pair in pairs:
        try:
            recipe = Recipe.parse(running.recipe(pair))
        except ExclusiveError as error:
            check_exclusive(pair, str(error))
            exclusive += 1
        except (SettingError, PydanticCustomError):
            continue  # a refusal of what is written, before anything runs
        else:
            assert set(pair) <= {type(it) for step in recipe.stages for it in methods_in(step.stage)}, pair
    assert {method.axis for pair in pairs for method in pair} == {Stage.axis, *running.places}
    assert 0 < exclusive < len(pairs) / 10, "few of all"


@pytest.mark.parametrize(
    ("names", "stage", "field", "written"),
    [
        ("init/eva+tune/lora", "train", "tune", {"lora": {"init": {"eva": {}}}}),
        ("init/eva+tune/dora", "train", "tune", {"dora": {"init": {"eva": {}}}}),
        ("block_score/uniform+tune/lisa", "train", "tune", {"lisa": {"score": {"uniform": {}}}}),
        ("skill/sort+source/lab", "train", "data", {"lab": {"skill": {"sort": {}}, "num": 16}}),
        ("skill/sort+select/grape", "select", "data", {"lab": {"skill": {"sort": {}}, "num": 16}}),
        ("skill/sort+stage/synthesize", "synthesize", "data", {"lab": {"skill": {"sort": {}}, "num": 16}}),
        ("skill/sort+synthesize/s3ft", "synthesize", "data", {"lab": {"skill": {"sort": {}}, "num": 16}}),
        ("skill/sort+teacher/lab", "synthesize", "data", {"lab": {"skill": {"sort": {}}, "num": 16}}),
        ("source/file+stage/rounds", "rounds", "data", {"file": {"path": "rows.jsonl"}}),
        ("stage/rounds+teacher/lab", "rounds", "method", {"llm2llm": {"teacher": {"lab": {}}}}),
        (
            "teacher/lab+verifier/exact",
            "synthesize",
            "method",
            {"llm2llm": {"teacher": {"lab": {}}, "verifier": {"exact": {}}}},
        ),
    ],
)
def test_one_of_two_becomes_a_setting_of_what_the_other_is_or_stands_in(
    running: Probe, names: str, stage: str, field: str, written: dict[str, Any]
) -> None:
    for methods in (named(names), named(names)[::-1]):
        stages = {step["name"]: step[step["name"]] for step in running.recipe(methods)["stages"]}
        placed = stages[stage][field]
        assert (placed[0] if isinstance(placed, list) else placed) == written


def test_a_list_holds_both(running: Probe) -> None:
    (train,) = running.recipe(named("skill/sort+source/file"))["stages"]
    skill, file = {"lab": {"skill": {"sort": {}}, "num": 16}}, {"file": {"path": "rows.jsonl"}}
    assert train["train"]["data"] == [skill, file]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ("source/stage+stage/select", {"select": ["lab/copy", "lab/shift"], "train": ["select", "lab/shift"]}),
        (
            "source/stage+stage/synthesize",
            {
                "select": ["lab/copy", "lab/shift"],
                "synthesize": ["select"],
                "train": ["select", "synthesize", "lab/shift"],
            },
        ),
        ("skill/sort+source/stage", {"select": ["lab/sort", "lab/shift"], "train": ["select"]}),
    ],
)
def test_no_stage_reads_its_own_data_or_the_same_twice_or_what_comes_later(
    running: Probe, names: str, read: dict[str, list[str]]
) -> None:
    steps = Recipe.parse(running.recipe(named(names))).stages
    assert [(step.name, [source.label for source in step.stage.sources()]) for step in steps] == list(read.items())


def test_two_that_stand_inside_share_a_method_that_takes_both(monkeypatch: pytest.MonkeyPatch, running: Probe) -> None:
    pair = named("init/eva+block_score/uniform")
    with pytest.raises(ExclusiveError, match=r"init only in dora or lora and block_score only in lisa$"):
        running.recipe(pair)
    for fake in (Scored, Wide):
        monkeypatch.setitem(fake._registered, fake.method_name, fake)
    places = find_places()
    assert places["block_score"][0].host is Wide, "what has most choices comes first, where nothing else counts"
    for methods in (pair, pair[::-1]):
        draft = Draft(places, methods)
        for method in methods:
            draft.put(method)
        assert draft.stages()["train"]["tune"] == {"scored": {"init": {"eva": {}}, "score": {"uniform": {}}}}


def test_two_that_need_one_place_exclude_each_other(running: Probe) -> None:
    trial = running.run(*named("init/eva+tune/lift"))
    reason = "both stand at train.tune: init only in dora or lora"
    assert (trial.methods, trial.outcome, trial.reason) == (("init/eva", "tune/lift"), "exclusive", reason)


def test_nothing_works_that_is_in_no_recipe(monkeypatch: pytest.MonkeyPatch, running: Probe) -> None:
    without = running.recipe(named("tune/lift"))
    monkeypatch.setattr(running, "recipe", lambda methods: without)
    trial = running.run(*named("mix/temperature+tune/lift"))
    assert trial.outcome == "defect" and trial.reason == "AssertionError: not in the recipe: temperature"


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
    trial = running.run(*named(names))
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
        Trial(("tune/bone", "retain/kl"), "exclusive", "both stand at train.tune: retain only in lora"),
    ]
    page = combinations_page(trials)
    assert "|  | ewc | kl |\n|---|---|---|\n| full | ✓ |  |\n| lora | - | ✗ |\n| bone | - | / |" in page
    assert "- `lora` + `ewc`, `bone` + `ewc`: - ewc: needs \\| whole weights; use full" in page
    assert "- `lora` + `kl`: ✗ KeyError: 'x'" in page
    assert "- `bone` + `kl`: / both stand at train.tune: retain only in lora" in page
    assert "5 pairs: 1 works, 2 refused, 1 exclusive, 1 defect, 0 untried." in page
