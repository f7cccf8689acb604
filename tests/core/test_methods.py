"""Methods as settings: what counts as a change of a method, and what is no number."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from temper.core import code, methods
from temper.core.methods import AXES, Method, Settings
from temper.engine.settings import FitSettings
from temper.objectives.base import Objective
from temper.pipeline.catalogue import import_methods
from temper.tune.base import Tune

import_methods()

AXIS = "class Thing(Method, axis='thing', packages=('thing_methods',)):\n    pass\n"
SHARED = "def step():\n    return 1\n"
ONE = (
    "from .base import Thing\nclass One(Thing, name='one'):\n    def go(self):\n"
    "        from thing_methods.shared import step\n        return step()\n"
)


def version_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: str) -> str:
    """Write a package of methods, import it afresh, and return the code version of its one method."""
    package = folder / "thing_methods"
    package.mkdir(parents=True)
    files = {"__init__": "", "base": f"from temper.core.methods import Method\n{AXIS}", "shared": SHARED, "one": ONE}
    for name, text in (files | {"beside": "pass\n"} | changed).items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.startswith("thing_methods")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    code._source.cache_clear()
    code._imported.cache_clear()
    monkeypatch.setattr(methods, "_imported", set(methods._imported) - {"thing_methods"})
    importlib.import_module("thing_methods.base")
    found = methods.AXES.pop("thing").methods()["one"].code_version()
    monkeypatch.undo()
    return found


def test_a_method_changes_with_what_it_builds_on_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = version_of_one(tmp_path / "a", monkeypatch)
    assert version_of_one(tmp_path / "b", monkeypatch) == before
    assert version_of_one(tmp_path / "c", monkeypatch, beside="pass  # changed\n") == before
    for number, (name, text) in enumerate((("one", ONE), ("shared", SHARED))):
        assert version_of_one(tmp_path / str(number), monkeypatch, **{name: text + "# changed\n"}) != before


def test_objectives_follow_the_file_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    sft, lm = (Objective.methods()[name] for name in ("sft", "lm"))
    before = lm.code_version()
    assert before == lm.code_version() != sft.code_version()
    original = code._source
    monkeypatch.setattr(code, "_source", lambda name: original(name) + "#" * (name == sft.__module__))
    assert lm.code_version() != before


class Numbers(Settings):
    lr: float | None = None
    steps: int = 1
    either: float | bool = False


@pytest.mark.parametrize("written", [{"lr": True}, {"steps": False}])
def test_true_is_no_number(written: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="not true or false"):
        Numbers.model_validate(written)


def test_true_is_true_where_it_may_be() -> None:
    assert Numbers.model_validate({"either": True}).either is True
    assert Numbers.model_validate({"lr": 1, "steps": 2}) == Numbers(lr=1.0, steps=2)


def test_a_method_of_another_axis_does_not_pass_for_one() -> None:
    objective = Objective.parse("sft")
    assert Objective.parse({"anything": objective}) is objective
    with pytest.raises(PydanticCustomError, match="'sft' is not a tune method"):
        Tune.parse({"sft": objective})


@pytest.mark.parametrize(
    "axis", [axis for axis in AXES.values() if axis.__abstractmethods__], ids=lambda axis: axis.axis
)
def test_a_method_that_lacks_what_its_axis_asks_for_cannot_be_made(axis: type[Method]) -> None:
    """Not when it is used for the first time, in the middle of a run."""
    empty = type("Empty", (axis,), {})
    with pytest.raises(TypeError, match="abstract"):
        empty()


def test_settings_made_in_python_say_what_is_wrong_with_them() -> None:
    """Without a recipe whose lines could be named; a method within a method is named on the way."""
    with pytest.raises(ValidationError) as caught:
        FitSettings(tune={"lora": {"rank": 0, "init": {"eva": {"rho": 99}}}})  # type: ignore[arg-type]
    said = str(caught.value)
    assert "settings of lora: rank Input should be greater than 0" in said
    assert "init settings of eva: rho Input should be less than or equal to 16" in said


IDLE = [
    (("objective", "distill"), {"teacher": "base"}, {"skew": 0.3}, {"divergence": "skewed"}),
    (("objective", "distill"), {"teacher": "base", "divergence": "reverse"}, {"skew": 0.3}, None),
    (("tune", "lofit"), {"heads": ["0.1"]}, {"share": 0.5}, {"heads": []}),
    (("tune", "lofit"), {"heads": ["0.1"]}, {"search": 0.2}, {"heads": []}),
    (("tune", "lofit"), {"heads": ["0.1"]}, {"sparsity": 0.2}, {"heads": []}),
    (("retain", "kl_base"), {}, {"examples": 4}, {"of": "lab/copy"}),
    (("tune", "loramoe"), {}, {"delta": 0.4}, {"knowledge": ["facts"]}),
    (("tune", "loramoe"), {}, {"column": "kind"}, {"knowledge": ["facts"]}),
    (("schedule", "constant"), {}, {"floor": 0.1}, None),
    (("source", "python"), {"view": "source"}, {"max_characters": 900}, {"view": "summaries"}),
    (("source", "hub"), {"path": "rows", "test": "test"}, {"test_share": 0.2}, {"test": None}),
    (("stage", "load"), {"path": "lab:tiny"}, {"revision": "main"}, {"path": "owner/name"}),
]


@pytest.mark.parametrize(("where", "beside", "written", "counts_with"), IDLE, ids=str)
def test_what_changes_nothing_is_refused_and_counts_where_it_does(
    where: tuple[str, str], beside: dict[str, object], written: dict[str, object], counts_with: dict[str, object] | None
) -> None:
    axis, name = where
    ((key, value),) = written.items()
    with pytest.raises(PydanticCustomError, match=rf"{axis}.{name}.{key}: {value!r} counts only .*; leave {key} out"):
        AXES[axis].parse({name: {**beside, **written}})
    # With every default written out, as `to_yaml` does, it is the same settings as without.
    plain = AXES[axis].parse({name: beside})
    assert AXES[axis].parse(plain.written()) == plain
    if counts_with is not None:
        assert getattr(AXES[axis].parse({name: {**beside, **counts_with, **written}}), key) == value


def test_what_a_backward_pass_alone_has_is_refused_without_one() -> None:
    for written in ({"clip": 0.5}, {"recompute": 0.5}):
        (key,) = written
        with pytest.raises(
            ValidationError, match=f"{key}: 0.5 counts only in a backward pass, which seeds does not have"
        ):
            FitSettings.model_validate({"optimizer": "seeds", **written})
        FitSettings.model_validate(written)
    FitSettings.model_validate({"optimizer": "seeds", "clip": None})


def test_the_same_retention_twice_is_refused() -> None:
    for retain in (["ewc", "ewc"], ["l2_start", "ewc", {"ewc": {"strength": 100}}]):
        with pytest.raises(
            ValidationError, match="retain: 'ewc' stands there twice with the same settings; name it once"
        ):
            FitSettings.model_validate({"retain": retain})
    FitSettings.model_validate({"retain": ["ewc", {"ewc": {"of": "lab/copy"}}]})
