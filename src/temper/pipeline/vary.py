"""Which settings a comparison runs: every combination of the values that its keys may take.

Decisions:
- A setting is a recipe and overrides, just as on the command line of `temper run`: it can be repeated by hand.
- `all` is read from the schema: the field that the key names takes methods of an axis, and these are they, each with
  its defaults, or with its `example` where the defaults do not do on the lab's data. Nothing is listed by hand.
- Two combinations that come to the same recipe are one setting.
- A value that was written and fits in no combination, nor alone, is a mistake, and an error before anything runs. A
  combination that does not fit, of values that do or that stand for `all`, is told in the results with its reason.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from temper.core.errors import SettingError, nearest
from temper.core.hashing import hash_json
from temper.core.methods import AXES, axes_in
from temper.pipeline.document import Document, read_value
from temper.pipeline.recipe import Recipe
from temper.report import format as fmt
from temper.stages.base import Stage

ALL = "all"
MAX_SLUG = 60
_NOT_VARIED = ("name", "seed", "compare", "measure")
_PAIRS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Setting:
    """One combination."""

    label: str
    slug: str
    """the label as a name of folders"""
    values: Mapping[str, Any]
    """by key, as written"""
    overrides: tuple[str, ...]
    """what makes it of the recipe"""
    problem: str = ""
    """why it is no recipe; empty where it is one"""


def read_vary(options: Sequence[str]) -> dict[str, list[Any]]:
    """Read `KEY=a,b,c` of the command line; commas inside of brackets and quotes belong to a value.

    Raises:
        SettingError: no `=`, no value, a bracket that is not closed, or a value that is not YAML.
    """
    vary: dict[str, list[Any]] = {}
    for text in options:
        key, equals, written = text.partition("=")
        if not equals or not key.strip():
            raise SettingError("--vary", text, "says not what varies", "write KEY=a,b, as in train.tune=lora,full")
        values = split_values(written)
        if not all(values):
            raise SettingError("--vary", text, "has an empty value", "write KEY=a,b without a comma too many")
        vary.setdefault(key.strip(), []).extend(read_value(value) for value in values)
    return vary


def split_values(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and in no quotes.

    Raises:
        SettingError: brackets or quotes that are not closed.
    """
    parts, closing, quote, is_escaped = [""], list[str](), "", False
    for letter in text:
        if quote:
            is_closed = letter == quote and not is_escaped
            is_escaped = letter == "\\" and quote == '"' and not is_escaped
            quote = "" if is_closed else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not closing or closing.pop() != letter:
                raise SettingError("--vary", text, f"closes with {letter!r} what is not open", "pair the brackets")
        elif letter == "," and not closing:
            parts.append("")
            continue
        parts[-1] += letter
    if closing or quote:
        raise SettingError("--vary", text, f"lacks a closing {quote or closing[-1]!r}", "pair brackets and quotes")
    return [part.strip() for part in parts]


def find_settings(document: Document, vary: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Return every combination of values.

    Args:
        document: the recipe without its key `compare`, overrides applied.
        vary: values by key.

    Raises:
        SettingError: a key that leads nowhere, or a value that fits in no combination.
    """
    axes = [_Varied.of(document, key, values) for key, values in vary.items()]
    settings: list[Setting] = []
    seen: set[str] = set()
    for chosen in itertools.product(*(axis.values for axis in axes)):
        values = {axis.key: value for axis, value in zip(axes, chosen, strict=True)}
        overrides = tuple(
            f"{path}={json.dumps(value)}" for axis, value in zip(axes, chosen, strict=True) for path in axis.paths
        )
        problem = ""
        try:
            recipe = Recipe.parse(copy.deepcopy(document), overrides)
        except SettingError as error:
            problem = " ".join(str(error).split()).removeprefix("command line: ")
            resolved = hash_json(list(overrides))
        else:
            resolved = hash_json(recipe.model_dump(mode="json"))
        if resolved not in seen:
            seen.add(resolved)
            label = " + ".join(_label(key, value) for key, value in values.items())
            settings.append(Setting(label, "", values, overrides, problem))
    _check_values(document, axes, settings)
    return _named(settings)


@dataclass(frozen=True)
class _Varied:
    """A key with all its values."""

    key: str
    paths: tuple[str, ...]
    """the places in the recipe that it stands for"""
    values: tuple[Any, ...]
    written: tuple[Any, ...]
    """those of the values that stand there literally, and not for `all`"""

    @classmethod
    def of(cls, document: Document, key: str, values: Sequence[Any]) -> _Varied:
        paths = tuple(paths_of(document.value, key))
        annotation = _annotation(paths[0])
        expanded = [list(_every(value, annotation, key)) for value in values]
        written = tuple(value for value, made in zip(values, expanded, strict=True) if made == [value])
        return cls(key, paths, tuple(itertools.chain(*expanded)), written)


def paths_of(recipe: Mapping[str, Any], key: str) -> list[str]:
    """Return the places of a key: itself, or one for each stage of the kind that it begins with."""
    first, _, rest = key.partition(".")
    kinds = Stage.methods()
    if first in kinds:
        if not rest:
            raise SettingError("vary", key, "is a kind of stage", f"name one of its settings, as in {key}.tune")
        numbers = [number for number, stage in enumerate(recipe["stages"]) if first in stage]
        if not numbers:
            raise SettingError("vary", key, f"begins with {first}, and the recipe has no such stage", "name another")
        return [f"stages[{number}].{key}" for number in numbers]
    if first in _NOT_VARIED:
        reason = "is the same for all settings of a comparison"
        raise SettingError("vary", key, reason, "vary what a stage does, as in train.tune")
    if first.partition("[")[0] not in ("stages", "base", "on_bad_rows"):
        known = [*kinds, "stages", "base"]
        raise SettingError("vary", key, "is no setting of a recipe", nearest(first, known))
    return [key]


def _annotation(path: str) -> Any:
    """Return the type of the field that a path leads to, None where it is not known."""
    steps = [step for step in re.split(r"[.\[\]]", path) if step]
    if len(steps) < 4 or steps[0] != "stages":
        return None
    owner: type[BaseModel] | None = Stage.methods().get(steps[2])
    return _descend(owner, steps[3:])


def _descend(owner: type[BaseModel] | None, steps: Sequence[str]) -> Any:
    if owner is None:
        return None
    fields = {field.alias or name: field for name, field in owner.model_fields.items()}
    field = fields.get(steps[0])
    if field is None or len(steps) == 1:
        return None if field is None else field.annotation
    for axis, _ in axes_in(field.annotation):
        return _descend(AXES[axis].methods().get(steps[1]), steps[2:]) if len(steps) > 2 else None
    return None


def _every(value: Any, annotation: Any, key: str) -> Iterator[Any]:
    """Yield a value, with each method for `all`, wherever in it that stands."""
    found = list(axes_in(annotation))
    if value == ALL:
        if not found:
            raise SettingError(f"vary.{key}", ALL, "stands for every method, and no method fits there", "list values")
        axis, is_list = found[0]
        for name, method in AXES[axis].methods().items():
            one = {name: dict(method.example)} if method.example else name
            yield [one] if is_list else one
        return
    if found and isinstance(value, dict) and len(value) == 1:
        name, own = next(iter(value.items()))
        owner = AXES[found[0][0]].methods().get(name)
        if owner is not None and isinstance(own, dict):
            parts = [list(_every(part, _descend(owner, [step]), f"{key}.{name}.{step}")) for step, part in own.items()]
            for chosen in itertools.product(*parts):
                yield {name: dict(zip(own, chosen, strict=True))}
            return
    yield value


def _check_values(document: Document, axes: Sequence[_Varied], settings: Sequence[Setting]) -> None:
    """Raise the error of a value that was written and fits in no combination, nor alone."""
    for axis in axes:
        for value in axis.written:
            having = [setting for setting in settings if setting.values[axis.key] == value]
            if having and all(setting.problem for setting in having):
                Recipe.parse(copy.deepcopy(document), [f"{path}={json.dumps(value)}" for path in axis.paths])


def _label(key: str, value: Any) -> str:
    name = key.rpartition(".")[2].replace("_", " ")
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return fmt.method(value, 9)
    if isinstance(value, list | tuple):
        return " and ".join(_label(key, item) for item in value) or f"no {name}"
    return f"{name} {fmt.method(value)}"


def _named(settings: Sequence[Setting]) -> list[Setting]:
    """Give every setting a label and a name of its own."""
    labels = [setting.label for setting in settings]
    named: list[Setting] = []
    for setting in settings:
        label = setting.label
        if labels.count(label) > 1:  # what was left out of the label tells them apart
            label = " + ".join(json.dumps(value) for value in setting.values.values())
        slug = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()[:MAX_SLUG] or "setting"
        taken = [other.slug for other in named]
        number = 1
        while (unique := slug if number == 1 else f"{slug}-{number}") in taken:
            number += 1
        named.append(Setting(label, unique, setting.values, setting.overrides, setting.problem))
    return named
