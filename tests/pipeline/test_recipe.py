"""Recipes: what is wrong is named where it stands; what is right comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fake_methods import known_fakes  # noqa: F401 (a fixture)
from temper.core.errors import DataError, SettingError
from temper.pipeline.explain import RecipeError
from temper.pipeline.recipe import Recipe, Step
from temper.stages.base import Stage

TEXT = """\
base: lab:tiny
measure:
  gain: [lab/reverse]
  keep: [lab/copy, {perplexity: {source: lab/sort, examples: 7}}]
  examples: 50
stages:
  - name: adapt
    train:
      data: [lab/reverse]
      tune: {lora: {rank: 8}}
      lr: 1e-4
      epochs: 3
  - name: polish
    train:
      from: adapt
      data: [lab/reverse]
      retain: [{replay: {of: lab/copy, share: 0.2}}]
    gate: 0.05
  - name: release
    merge: {method: linear, of: [adapt, polish]}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return Recipe.load(path, overrides)


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path / 'mine.yaml'}:", "").splitlines()


def test_a_recipe_reads_as_written(tmp_path: Path) -> None:
    recipe = load(tmp_path, TEXT, "stages.adapt.train.lr=3e-4", "stages[0].train.tune.lora.rank=4")
    assert recipe.name == "mine"
    adapt = recipe.step("adapt").stage.written()["train"]
    assert adapt["lr"] == 3e-4 and adapt["tune"]["lora"]["rank"] == 4 and adapt["epochs"] == 3
    assert recipe.step("polish").gate is not None and recipe.step("polish").gate.max_fall == 0.05  # type: ignore[union-attr]
    # What a suite does not say, the recipe says for it.
    assert recipe.measure.gain[0].written()["exact_match"]["examples"] == 50
    assert recipe.measure.keep[1].written()["perplexity"]["examples"] == 7


def test_by_default_drift_is_kept(tmp_path: Path) -> None:
    recipe = load(tmp_path, "base: x\nstages: [{name: a, train: {data: [lab/copy]}}]")
    assert [suite.label for suite in recipe.measure.keep] == ["drift", "own text"]
    assert load(tmp_path, "base: x\nmeasure: {keep: []}\nstages: [{name: a, train: {data: [x]}}]").measure.keep == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("rank: 8", "rank: 0", 10, "stages[0].train.tune.lora.rank: 0 should be greater than 0; the default is 8"),
        ("rank: 8", "rank: .inf", 10, "stages[0].train.tune.lora.rank: '.inf' should be a whole number"),
        ("lr: 1e-4", "lernrate: 1", 11, "stages[0].train.lernrate: unknown key; did you mean 'lr'?"),
        ("lr: 1e-4", "learning_rate: 1", 11, "stages[0].train.learning_rate: unknown key; did you mean 'lr'?"),
        (
            "share: 0.2",
            "shares: 0.2",
            17,
            "stages[1].train.retain[0].replay.shares: unknown key; did you mean 'share'?",
        ),
        ("lora:", "lorra:", 10, "stages[0].train.tune: 'lorra' is no tune method; did you mean 'lora'?"),
        ("    train:\n      data", "    trian:\n      data", 8, "stages[0].trian: unknown key; did you mean 'train'?"),
        ("gate: 0.05", "gait: 0.05", 18, "stages[1].gait: unknown key; did you mean 'gate'?"),
        ("gate: 0.05", "gate: -1", 18, "stages[1].gate: -1 should be greater than or equal to 0"),
        (
            "lab/reverse]\n      tune",
            "lab/revers]\n      tune",
            9,
            "'revers' is no skill method; did you mean 'reverse'?",
        ),
        ("name: polish", "name: adapt", 13, "stages[1].name: 'adapt' is also the name of stages[0]"),
        ("name: polish", "name: base", 13, "stages[1].name: 'base' is the name of the recipe's base"),
        ("name: polish", "name: a b", 13, "stages[1].name: 'a b' is no name for a folder"),
        ("from: adapt", "from: adept", 15, "stages[1].train.from: 'adept' is no stage before this one; did you mean"),
        ("from: adapt", "from: polish", 15, "stages[1].train.from: 'polish' is the stage itself"),
        ("from: adapt", "from: release", 15, "stages[1].train.from: 'release' reads stage 'polish' itself, a circle"),
        ("of: [adapt, polish]", "of: [adapt, polsh]", 20, "stages[2].merge.of[1]: 'polsh' is no stage before this one"),
        ("gate: 0.05", "merge: {}", 13, "stages[1]: a stage does one thing, and this one has train and merge"),
        ("base: lab:tiny\n", "", None, "base: is missing"),
        ("base: lab:tiny", "base: {}", 1, "base: None is not one model"),
        ("base: lab:tiny", "base: {path: lab:tiny, revision: x}", 1, "revision: 'x' has no effect"),
        ("examples: 50", "exampels: 50", 5, "measure.exampels: unknown key; did you mean 'examples'?"),
        ("lab/copy, {", "lab/reverse, {", 2, "measure: 'lab/reverse' labels 2 suites"),
        ("lr: 1e-4", "lr: true", 11, "stages[0].train.lr: True should be a number"),
        (
            "gate: 0.05",
            "gate: {max_fall: 1, suites: {lab/cpoy: 1}}",
            18,
            "1.0 limits no suite; did you mean 'lab/copy'?",
        ),
        (
            "method: linear",
            "method: {linear: {weights: [1, 2, 3]}}",
            20,
            "stages[2].merge.method.linear.weights: [1.0, 2.0, 3.0] has 3 factors for 2 models",
        ),
        (
            "tune: {lora: {rank: 8}}",
            "tune: {spiel: {gather_steps: 50}}",
            10,
            "stages[0].train.tune.spiel.gather_steps: 50 is not less than every_steps",
        ),
        ("of: [adapt, polish]", "of: [adapt, adapt]", 20, "stages[2].merge.of: 'adapt' is named twice"),
        ("data: [lab/reverse]", "data: lab/reverse", 9, "'lab/reverse' should be a list, in [brackets]"),
        ("      epochs: 3", "      epochs: 3\n      steps: 3", 13, "steps: 3 is given beside epochs"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, line: int | None, said: str) -> None:
    assert old in TEXT
    found = problems(tmp_path, TEXT.replace(old, new, 1))
    at = f"{line}: " if line is not None else " "
    assert any(text.startswith(at) and said in text for text in found), found


def test_several_problems_are_told_together(tmp_path: Path) -> None:
    found = problems(tmp_path, TEXT.replace("rank: 8", "rnak: 8").replace("epochs: 3", "epochs: -3"), "sede=1")
    assert [text.partition(";")[0] for text in found] == [
        "10: stages[0].train.tune.lora.rnak: unknown key",
        "12: stages[0].train.epochs: -3 should be greater than 0",
        "command line: sede: unknown key",
    ]


def test_an_override_can_be_wrong_too(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, TEXT, "stages.adapt.train.tune.lora.rank=-1")
    assert only.startswith("command line: stages[0].train.tune.lora.rank: -1 should be greater than 0")


def test_a_stage_without_a_kind_is_explained(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, "base: x\nstages:\n  - name: a\n    gate: 1\n")
    assert only.startswith("3: stages[0]: does nothing; add what the stage does: one of ") and "train" in only


def test_no_stages(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, "base: x\nstages: []\n")
    assert only.startswith("2: stages: holds 0 items where at least 1 is needed")


def test_python_and_yaml_make_the_same_recipe(tmp_path: Path) -> None:
    from temper.merge.base import Merge
    from temper.stages.train import Train
    from temper.tune.base import Tune

    written = load(tmp_path, TEXT)
    made = Recipe(
        name="mine",
        base="lab:tiny",  # type: ignore[arg-type]
        measure={  # type: ignore[arg-type]
            "gain": ["lab/reverse"],
            "keep": ["lab/copy", {"perplexity": {"source": "lab/sort", "examples": 7}}],
            "examples": 50,
        },
        stages=(
            Step(
                name="adapt",
                stage=Train(data=["lab/reverse"], tune=Tune.parse({"lora": {"rank": 8}}), lr=1e-4, epochs=3),  # type: ignore[arg-type]
            ),
            {  # type: ignore[arg-type]
                "name": "polish",
                "train": Train(
                    from_stage="adapt",
                    data=["lab/reverse"],  # type: ignore[arg-type]
                    retain=[{"replay": {"of": "lab/copy", "share": 0.2}}],  # type: ignore[arg-type]
                ),
                "gate": 0.05,
            },
            {"name": "release", "merge": {"method": Merge.parse("linear"), "of": ["adapt", "polish"]}},  # type: ignore[arg-type]
        ),
    )
    assert made == written
    with pytest.raises(ValidationError, match="no stage before this one"):
        Recipe(base="x", stages=[{"name": "a", "train": {"from": "b", "data": ["x"]}}])  # type: ignore[arg-type]


@pytest.mark.usefixtures("known_fakes")
class TestDataStages:
    """`data: [curate]`, where `curate` is a stage."""

    def text(self, data: str, extra: str = "") -> str:
        return (
            f"base: x\nstages:\n  - {{name: curate, fake_select: {{calls: c}}}}\n"
            f"  - {{name: adapt, fake_train: {{calls: c, data: [{data}]}}}}\n{extra}"
        )

    def test_a_stage_s_name_is_its_data(self, tmp_path: Path) -> None:
        recipe = load(tmp_path, self.text("curate, lab/copy"))
        sources = recipe.step("adapt").stage.sources()
        assert sources[0].written() == {"stage": {"stage": "curate"}}
        assert sources[1].label == "lab/copy"
        assert load(tmp_path, recipe.to_yaml()) == recipe

    def test_a_path_is_a_file(self, tmp_path: Path) -> None:
        (source,) = load(tmp_path, self.text("./curate")).step("adapt").stage.sources()
        assert list(source.written()) == ["file"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("data: [curat]", "stages[1].fake_train.data[0]: 'curat' is no file and no stage before this one; did you"),
            ("data: [adapt]", "stages[1].fake_train.data[0]: 'adapt' is the stage itself"),
            ("data: [later]", "stages[1].fake_train.data[0]: 'later' comes later in the recipe; move it"),
            ("data: [stage/absent]", "'absent' is no stage before this one"),
            ("from: curate", "stages[1].fake_train.from: 'curate' makes data, not model; known: base"),
        ],
    )
    def test_what_leads_nowhere(self, tmp_path: Path, text: str, said: str) -> None:
        later = "  - {name: later, fake_select: {calls: c}}\n"
        found = problems(tmp_path, self.text("curate", later).replace("data: [curate]", text))
        assert any(said in line for line in found), found

    def test_a_model_is_no_data(self, tmp_path: Path) -> None:
        more = "  - {name: next, fake_train: {calls: c, data: [adapt]}}\n"
        (only,) = problems(tmp_path, self.text("curate", more))
        assert "stages[2].fake_train.data[0]: 'adapt' makes model, not data; known: curate" in only


def settings_of(written: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every key in a written stage that is a setting (not a method's name)."""
    found: list[tuple[Any, ...]] = []
    if isinstance(written, dict):
        for key, value in written.items():
            found += [(*path, key), *settings_of(value, (*path, key))]
    elif isinstance(written, list):
        for index, value in enumerate(written):
            found += settings_of(value, (*path, index))
    return found


FULL = Recipe.parse(yaml.safe_load(TEXT)).model_dump(mode="json")
KEYS = [path for path in settings_of({"stages": FULL["stages"][:2], "measure": FULL["measure"]}) if len(path) > 1]


@settings(max_examples=60)
@given(st.sampled_from(KEYS), st.integers(0, 30), st.sampled_from("xqz_"))
def test_a_misspelt_key_is_named(path: tuple[Any, ...], place: int, letter: str) -> None:
    """Whatever key of whatever depth is misspelt, the error names where it stands."""
    key = path[-1]
    if not isinstance(key, str):
        return
    wrong = key[: place % (len(key) + 1)] + letter + key[place % (len(key) + 1) :]
    written = json.loads(json.dumps(FULL))
    owner: Any = written
    for step in path[:-1]:
        owner = owner[step]
    if wrong in owner:
        return
    owner[wrong] = owner.pop(key)
    with pytest.raises(SettingError) as caught:
        Recipe.parse(written)
    assert wrong in str(caught.value), str(caught.value)


NAMES = st.text("abcdefghij_-0123456789", min_size=1, max_size=8).filter(lambda text: text[0] != "-" and text != "base")
SOURCES = st.sampled_from(["lab/copy", "lab/reverse", "data/train.jsonl", {"lab": {"skill": "sort", "num": 7}}])
TUNES = st.sampled_from(["full", "lora", {"lora": {"rank": 3, "rs_lora": True}}])
FLOATS = st.floats(1e-12, 1e12, exclude_min=True)
TRAINS = st.fixed_dictionaries(
    {"data": st.lists(SOURCES, min_size=1, max_size=3)},
    optional={
        "tune": TUNES,
        "objective": st.sampled_from(["sft", "lm"]),
        "lr": FLOATS,
        "steps": st.integers(1, 10**9),
        "schedule": st.sampled_from(["constant", {"wsd": {"decay_share": 0.5}}]),
        "retain": st.lists(SOURCES, max_size=2).map(
            lambda sources: [{"replay": {"of": of, "share": (1 + n) / 10}} for n, of in enumerate(sources)]
        ),
        "truncate": st.booleans(),
        "seed": st.integers(0, 9),
    },
)
STAGES = st.lists(st.tuples(NAMES, TRAINS), min_size=1, max_size=4, unique_by=lambda pair: pair[0]).map(
    lambda pairs: [{"name": name, "train": train} for name, train in pairs]
)
RECIPES = st.fixed_dictionaries(
    {
        "name": NAMES,
        "base": st.sampled_from(["lab:tiny", "owner/name", {"path": "x", "dtype": "float32"}, "no", "1e-4", "./a b"]),
        "stages": STAGES,
    },
    optional={
        "seed": st.integers(0, 2**31),
        "on_bad_rows": st.sampled_from(["stop", "skip"]),
        "measure": st.fixed_dictionaries({}, optional={"gain": st.just(["lab/copy"]), "shots": st.integers(0, 9)}),
    },
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES)
def test_a_recipe_comes_back_from_its_yaml(written: dict[str, Any]) -> None:
    recipe = Recipe.parse(written)
    from temper.pipeline.document import parse_document

    text = recipe.to_yaml()
    assert Recipe.parse(parse_document(text, "again.yaml")) == recipe
    # Another reader of YAML finds no other value in it.
    assert yaml.safe_load(text) == recipe.model_dump(mode="json")


def test_the_file_names_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        Recipe.load(tmp_path / "absent.yaml")
    (tmp_path / "a b.yaml").write_text(TEXT)
    with pytest.raises(RecipeError, match="no name for a folder"):
        Recipe.load(tmp_path / "a b.yaml")
    assert Recipe.load(tmp_path / "a b.yaml", ["name=ab"]).name == "ab"


def test_every_kind_of_stage_is_known() -> None:
    assert {"train", "merge", "export", "evaluate"} <= set(Stage.methods())
