"""A recipe: a base model, what to measure, and the stages that it goes through.

Decisions:
- A recipe is a pydantic model like every method, so YAML, Python and the pages of the documentation share one
  schema. In YAML a stage is written `{name, <kind>: settings, gate}`; in Python `Step(name=..., stage=Train(...))`.
- A stage reads models and data by the names of stages before it, so the order in which stages are written is an
  order in which they can run, and a cycle cannot be written.
- A source written as the name of an earlier stage that makes data (`data: [curate]`) is that stage's data. Such
  a name wins over a file of the same name; write `./curate` for the file.
- Paths in a recipe are relative to the folder from which it is run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from temper.core.errors import SettingError, TemperError, nearest
from temper.core.methods import Settings
from temper.data.source import OnBadRows
from temper.measure.base import Suite, with_defaults
from temper.measure.examples import Half
from temper.pipeline.base import Base
from temper.pipeline.comparing import Compare
from temper.pipeline.document import Document, override, read_document, read_value
from temper.pipeline.explain import validate
from temper.pipeline.references import check_references
from temper.stages.base import Stage

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$"
"""names become folders, on every system"""
STEP_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_\-]*$"
"""no dots: `stages.adapt.train.lr` names a setting on the command line"""


class Measure(Settings):
    """What is measured after every stage."""

    gain: tuple[Suite, ...] = Field((), description="suites that should get better")
    keep: tuple[Suite, ...] = Field(
        ("drift", {"drift": {"metric": "loss"}}),  # type: ignore[arg-type]
        description="suites that must not get worse; by default, on text that the base samples, how far the model has "
        "drifted from it and the loss",
    )
    shots: int = Field(4, ge=0, description="worked examples of the few-shot arm of the base; 0 leaves it out")
    examples: int | None = Field(
        200, ge=1, description="examples of each suite at most, where the suite does not say; null for all of them"
    )
    half: Half | None = Field(
        None,
        description="first or second: measure on that half of each suite's rows only, where the suite does not say; "
        "null for all of them",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the choice of examples and of the bootstrap")

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = [suite.label for suite in (*self.gain, *self.keep)]
        for label in labels:
            if labels.count(label) > 1:
                raise SettingError(
                    "measure", label, f"labels {labels.count(label)} suites", "measure it once, or give one a `name`"
                )
        return self


class Gate(Settings):
    """How far a suite may fall before the run stops."""

    max_fall: float = Field(
        ..., ge=0, description="allowed fall: in the suite's own unit, for perplexity as a share of the other value"
    )
    suites: dict[str, float] = Field(
        default_factory=dict, description="other limits for single suites, by the suite's label"
    )
    against: Literal["base", "previous"] = Field("base", description="the model that is compared with")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, written: object) -> object:
        return {"max_fall": written} if isinstance(written, int | float) and not isinstance(written, bool) else written


class Step(Settings):
    """One stage of a recipe: its name, what it does, and when to stop."""

    name: str = Field(pattern=STEP_NAME, description="the stage's name, for later stages and for its folder")
    stage: Stage = Field(description="what the stage does")
    gate: Gate | None = Field(None, description="stop the run when a kept suite falls by more than this")

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, written: object) -> object:
        if not isinstance(written, dict) or "stage" in written:
            return written
        kinds = {key: value for key, value in written.items() if key not in ("name", "gate")}
        known = Stage.methods()
        wrong = [key for key in kinds if key not in known]
        if wrong:
            hint = nearest(wrong[0], [*known, "name", "gate"])
            raise PydanticCustomError("unknown_kind", "{hint}", {"hint": hint, "key": wrong[0]})
        if not kinds:
            raise PydanticCustomError("no_kind", "{known}", {"known": ", ".join(known)})
        if len(kinds) > 1:
            raise PydanticCustomError("two_kinds", "{kinds}", {"kinds": " and ".join(kinds)})
        return {**{key: written[key] for key in ("name", "gate") if key in written}, "stage": kinds}

    @model_serializer(mode="plain")
    def _written(self) -> dict[str, Any]:
        gate = {} if self.gate is None else {"gate": self.gate.model_dump(mode="json")}
        return {"name": self.name, **self.stage.written(), **gate}


class Recipe(Settings):
    """A base model and the stages that it goes through.

    Example:
        ```python
        recipe = temper.Recipe.load("recipe.yaml", ["stages.adapt.train.lr=3e-4"])
        recipe = temper.Recipe.parse(
            {"base": "lab:tiny", "stages": [{"name": "adapt", "train": {"data": ["lab/reverse"], "tune": "lora"}}]}
        )
        ```

    Raises:
        pydantic.ValidationError: settings that do not fit (`Recipe.load` and `Recipe.parse` explain them instead).
    """

    name: str = Field("recipe", pattern=NAME, description="the recipe's name; by default its file's")
    base: Base = Field(description="the model that the first stage starts from")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random in the run")
    on_bad_rows: OnBadRows = Field(
        "stop", description="a row that cannot be used stops the run, or is skipped: put aside"
    )
    measure: Measure = Field(default_factory=Measure, description="what is measured after every stage")
    stages: tuple[Step, ...] = Field(
        json_schema_extra={"minItems": 1}, description="what the model goes through, in order"
    )
    compare: Compare | None = Field(
        None, description="what `temper compare` varies; `temper run` runs the recipe as its stages stand"
    )

    @field_validator("measure", mode="before")
    @classmethod
    def _empty(cls, written: object) -> object:
        return {} if written is None else written

    @field_validator("measure", mode="after")
    @classmethod
    def _pass_on(cls, measure: Measure, info: ValidationInfo) -> Measure:
        defaults = {
            "examples": measure.examples,
            "half": measure.half,
            "on_bad_rows": info.data.get("on_bad_rows", "stop"),
        }

        def complete(suites: tuple[Suite, ...]) -> tuple[Suite, ...]:
            return tuple(with_defaults(suite, **defaults) for suite in suites)

        return measure.model_copy(update={"gain": complete(measure.gain), "keep": complete(measure.keep)})

    @field_validator("stages", mode="after")
    @classmethod
    def _resolve(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if not steps:
            # Not by `min_length`, which does not count a stage that does not fit: it would be said to be missing.
            raise PydanticKnownError("too_short", {"field_type": "Tuple", "min_length": 1, "actual_length": 0})
        return check_references(steps)

    @model_validator(mode="after")
    def _check_gates(self) -> Self:
        labels = [suite.label for suite in (*self.measure.gain, *self.measure.keep)]
        problems = [
            (("stages", index, "gate", "suites", label), limit, "limits no suite", nearest(label, labels))
            for index, step in enumerate(self.stages)
            for label, limit in (step.gate.suites if step.gate else {}).items()
            if label not in labels
        ]
        if problems:
            text = "; ".join(f"stages: {path[-1]} {reason}; {fix}" for path, _, reason, fix in problems)
            raise PydanticCustomError("references", "{text}", {"text": text, "problems": problems})
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from a YAML file.

        Args:
            path: the file; its stem is the recipe's name unless it names itself.
            overrides: `dotted.key=value` with YAML values; stages by name or index
                (`stages.adapt.train.lr=3e-4`, `stages[0].train.tune.lora.rank=4`).

        Raises:
            DataError: a file that is not there or not YAML.
            RecipeError: settings that do not fit, all of them together, each with its line.
        """
        document = read_document(Path(path))
        document.value.setdefault("name", Path(path).stem)
        return cls.parse(document, overrides)

    @classmethod
    def parse(cls, written: dict[str, Any] | Document, overrides: Sequence[str] = ()) -> Recipe:
        """Make a recipe of plain values, as YAML or JSON holds them; methods may also be given as objects.

        Raises:
            RecipeError: settings that do not fit, all of them together.
        """
        document = written if isinstance(written, Document) else Document(copy.deepcopy(written))
        for text in overrides:
            override(document, text)
        return validate(cls, document)

    def to_yaml(self) -> str:
        """Return the recipe with every default filled in, as YAML that loads to an equal recipe."""
        return yaml.dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, Dumper=_Dumper, width=100)

    def step(self, name: str) -> Step:
        """Return a stage by name. Raises SettingError for an unknown one."""
        for step in self.stages:
            if step.name == name:
                return step
        raise SettingError("stage", name, "is no stage of this recipe", nearest(name, [s.name for s in self.stages]))


class _Dumper(yaml.SafeDumper):
    """Writes what `document.py` reads: text that its rules would take for a number is quoted, whichever YAML it is."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        is_plain = read_value(text) == text
    except TemperError:
        is_plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)
