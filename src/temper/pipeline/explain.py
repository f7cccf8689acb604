"""What is wrong with a recipe, in the words in which it was written.

Pydantic reports where validation stopped: through unions, validators and methods inside methods. Here its
report becomes the dotted path that the user wrote, the value, the reason and the fix, with file and line; all
problems of a recipe together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from temper.core.errors import SettingError, nearest
from temper.core.methods import Method
from temper.pipeline.document import Document, Step, show_path

SHOWN = 80
"""characters of a value that an error shows"""
KINDS = {
    "tuple_type": "a list, in [brackets] or with a dash before each item",
    "list_type": "a list, in [brackets] or with a dash before each item",
    "dict_type": "settings, as {key: value} or one key on each line",
    "model_type": "settings, as {key: value} or one key on each line",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "number_type": "a number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
"""what pydantic calls a kind of value, in the words of a recipe"""


@dataclass(frozen=True)
class Problem:
    """One setting that does not fit."""

    path: tuple[Step, ...]
    value: object
    reason: str
    fix: str
    shows_value: bool = True
    is_count: bool = False
    """too few or too many items"""

    def show(self) -> str:
        value = repr(self.value)
        value = value if len(value) <= SHOWN else value[: SHOWN - 1] + "…"
        said = f"{value} {self.reason}" if self.shows_value else self.reason
        return f"{show_path(self.path)}: {said}; {self.fix}"


class RecipeError(SettingError):
    """Settings of a recipe that do not fit: one line for each, with file and line where they are known.

    Its key, value, reason and fix are those of the first.
    """

    def __init__(self, problems: Sequence[Problem], document: Document) -> None:
        first = problems[0]
        super().__init__(show_path(first.path), first.value, first.reason, first.fix)
        self.problems = tuple(problems)
        self.args = ("\n".join(f"{_where(problem, document)}{problem.show()}" for problem in problems),)


def _where(problem: Problem, document: Document) -> str:
    if any(problem.path[: len(path)] == path for path, _ in document.overridden):
        return "command line: "
    if document.source is None:
        return ""
    line = document.line(problem.path)
    return f"{document.source}:{line}: " if line else f"{document.source}: "


T = TypeVar("T", bound=BaseModel)


def validate(owner: type[T], written: Mapping[str, Any] | Document) -> T:
    """Make settings of plain values.

    Raises:
        RecipeError: values that do not fit, all of them together.
    """
    document = written if isinstance(written, Document) else Document(dict(written))
    try:
        return owner.model_validate(document.value)
    except ValidationError as error:
        raise explain(error, owner, document) from error


def explain(error: ValidationError, root: type[BaseModel], document: Document) -> RecipeError:
    """Turn pydantic's report on a recipe into one for its author."""
    found: dict[tuple[Step, ...], list[Problem]] = {}
    for problem in _problems(error.errors(include_url=False), (root,), (), document.value):
        found.setdefault(problem.path, []).append(problem)
    problems = []
    for path, same in found.items():
        deeper = [other for other in found if len(other) > len(path) and other[: len(path)] == path]
        if deeper and all(problem.is_count for problem in same):
            continue  # an item that does not fit is not counted; its own problem says more
        # A union reports each of its branches; together they say what would fit.
        reasons = list(dict.fromkeys(problem.reason for problem in same))
        joined = " and ".join(reasons)
        problems.append(Problem(same[0].path, same[0].value, joined, same[0].fix, same[0].shows_value))
    return RecipeError(problems, document)


Classes = tuple[type[BaseModel], ...]


def _problems(
    errors: Sequence[ErrorDetails], classes: Classes, above: tuple[Step, ...], written: object
) -> Iterator[Problem]:
    for error in errors:
        yield from _problem(error, classes, above, written)


def _problem(error: ErrorDetails, classes: Classes, above: tuple[Step, ...], written: object) -> Iterator[Problem]:
    kind, context = error["type"], error.get("ctx", {})
    location = tuple(error["loc"])
    path, value = _descend(written, location, above, is_missing=kind == "missing")
    inside, field = _follow(classes, location)
    if kind == "method_settings":
        name = context["name"]
        if isinstance(value, Mapping) and name in value:
            path, value = (*path, name), value[name]
        known = [axis.methods() for axis in inside if issubclass(axis, Method) and not axis.method_name]
        methods = tuple(by_name[name] for by_name in known if name in by_name)
        yield from _problems(context["errors"], methods, path, value)
    elif kind == "references":
        for place, wrong, reason, fix in context["problems"]:
            yield Problem(_descend(written, place, above)[0], wrong, reason, fix)
    elif kind == "extra_forbidden":
        parents, _ = _follow(classes, location[:-1])
        hint = _nearest_key(str(location[-1]), parents)
        yield Problem((*_descend(written, location[:-1], above)[0], location[-1]), value, "unknown key", hint, False)
    elif kind == "unknown_kind":
        yield Problem((*path, context["key"]), value, "unknown key", context["hint"], False)
    elif kind == "two_kinds":
        reason = f"a stage does one thing, and this one has {context['kinds']}"
        yield Problem(path, value, reason, "write a stage for each", False)
    elif kind == "no_kind":
        yield Problem(path, value, "does nothing", f"add what the stage does: one of {context['known']}", False)
    elif kind == "unknown_method":
        given = error["input"]
        name = next(iter(given)) if isinstance(given, Mapping) else given
        yield Problem(path, name, f"is no {context['axis']} method", context["hint"])
    elif kind == "method_shape":
        reason = f"is no {context['axis']} method"
        yield Problem(path, error["input"], reason, "write its name, or its name over its settings")
    elif kind == "missing":
        yield Problem(path, None, "is missing", f"write {_described(field) or 'it'}", False)
    elif kind == "value_error" and isinstance(context.get("error"), SettingError):
        cause = context["error"]
        own = () if cause.key in path else tuple(cause.key.split("."))
        # A method says where its settings are written; where that was found already, it is not said twice.
        said = max((size for size in range(1, len(own) + 1) if path[-size:] == own[:size]), default=0)
        yield Problem((*path, *own[said:]), cause.value, cause.reason, cause.fix)
    elif kind == "value_error":
        yield Problem(path, error["input"], f"does not fit: {context.get('error')}", _fix(field))
    elif kind == "string_pattern_mismatch" and path and path[-1] == "name":
        yield Problem(
            path,
            error["input"],
            "is no name for a folder",
            "use letters, digits, `-` and `_`"
            + ("" if len(path) > 1 else "; `name:` in the recipe, or name=... on the command line, says another one"),
        )
    elif kind in ("too_short", "too_long"):
        limit = context.get("min_length", context.get("max_length"))
        reason = f"holds {context['actual_length']} items where at {'least' if kind == 'too_short' else 'most'} {limit}"
        yield Problem(path, value, f"{reason} {'is' if limit == 1 else 'are'} needed", _fix(field), False, True)
    elif kind in KINDS:
        yield Problem(path, error["input"], f"should be {KINDS[kind]}", _fix(field))
    else:
        message = error["msg"].partition(", unable to")[0]
        reason = f"should {message.removeprefix('Input should ')}" if message.startswith("Input") else f"({message})"
        yield Problem(path, error["input"], reason, _fix(field))


def _descend(
    written: object, location: Sequence[Step], above: tuple[Step, ...], is_missing: bool = False
) -> tuple[tuple[Step, ...], Any]:
    """Return the path of what the user wrote, and its value; steps that only validation took are left out."""
    path = above
    value: Any = written
    for index, step in enumerate(location):
        is_item = isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)
        if is_item or (isinstance(value, Mapping) and step in value):
            path, value = (*path, step), value[step]
        elif is_missing and index == len(location) - 1:
            path, value = (*path, step), None
    return path, value


def _follow(classes: Classes, location: Sequence[Step]) -> tuple[Classes, FieldInfo | None]:
    """Return the settings that can stand at a place, and the last field on the way."""
    field: FieldInfo | None = None
    for step in location:
        for owner in classes:
            found = _field(owner, step)
            if found is not None:
                field, classes = found, tuple(_models_in(found.annotation))
                break
    return classes, field


def _field(owner: type[BaseModel], key: Step) -> FieldInfo | None:
    for name, field in owner.model_fields.items():
        if key in (field.alias or name, name):
            return field
    return None


def _nearest_key(word: str, classes: Classes) -> str:
    """Return the key that a word stands for: by its spelling, or by what the key's description calls it."""
    fields = [pair for owner in classes for pair in owner.model_fields.items()]
    keys = {field.alias or name: field.description or "" for name, field in fields}
    by_name = {key: _likeness(word, key) for key in keys}
    by_meaning = {
        key: max((_likeness(word, phrase) for phrase in _phrases(text)), default=0.0) for key, text in keys.items()
    }
    for likeness, enough in ((by_name, 0.75), (by_meaning, 0.75), (by_name, 0.6)):
        best = max(likeness, key=lambda key: likeness[key], default="")
        if best and likeness[best] >= enough:
            return f"did you mean {best!r}?"
    return nearest(word, keys)


def _likeness(left: str, right: str) -> float:
    one, other = (text.lower().replace("_", "").replace("-", "").replace(" ", "") for text in (left, right))
    return SequenceMatcher(None, one, other).ratio()


def _phrases(text: str) -> Iterator[str]:
    """Yield every word, and every two words that follow one another."""
    words = [word.strip(".,:;()") for word in text.split()]
    yield from words
    yield from (f"{one} {two}" for one, two in pairwise(words))


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _described(field: FieldInfo | None) -> str:
    return field.description or "" if field is not None else ""


def _fix(field: FieldInfo | None) -> str:
    if field is None:
        return "correct the value"
    meaning = f" ({field.description})" if field.description else ""
    if field.is_required() or field.default is None or not isinstance(field.default, int | float | str | bool):
        return f"correct the value{meaning}"
    return f"the default is {field.default!r}{meaning}"
