"""How the stages of a recipe name one another: the models and the data of stages before them.

A reference that leads nowhere is explained: a stage that comes later, one that makes no model, the stage itself,
or a name that is nearly another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from temper.core.errors import nearest
from temper.core.methods import Method, methods_in
from temper.data.source import Source
from temper.data.sources.file import FileSource
from temper.data.sources.stage import StageData
from temper.pipeline.document import Step as PathStep
from temper.signals.setup import is_outside

if TYPE_CHECKING:
    from temper.pipeline.recipe import Step

BASE = "base"
Path_ = tuple[PathStep, ...]
Wrong = tuple[Path_, object, str, str]
"""path, value, reason, fix"""


def previous_of(steps: Sequence[Step]) -> list[str]:
    """Return, for each stage, the nearest stage before it that makes a model, or `base`."""
    previous, found = BASE, []
    for step in steps:
        found.append(previous)
        if step.stage.produces == "model":
            previous = step.name
    return found


def data_stages(step: Step) -> list[str]:
    """Return the stages whose data a stage reads."""
    named = [method.stage for method in methods_in(step.stage) if isinstance(method, StageData)]
    return list(dict.fromkeys(named))


def check_references(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the stages with the names of data stages resolved.

    Raises:
        PydanticCustomError: names used twice, or references that lead nowhere (`problems` in its context).
    """
    problems: list[Wrong] = []
    resolved: list[Step] = []
    names = [step.name for step in steps]
    for index, (step, previous) in enumerate(zip(steps, previous_of(steps), strict=True)):
        at: Path_ = ("stages", index)
        if step.name == BASE:
            problems.append(((*at, "name"), BASE, "is the name of the recipe's base", "choose another name"))
        elif step.name in names[:index]:
            reason = f"is also the name of stages[{names.index(step.name)}]"
            problems.append(((*at, "name"), step.name, reason, "choose another name"))
        for name in filterfalse(is_outside, step.stage.models(previous)):
            problems += _model_problem(steps, index, name)
        resolved.append(step.model_copy(update={"stage": replace_sources(step.stage, _resolver(steps, index))}))
        problems += _data_problems(steps, index, resolved[-1])
    if problems:
        texts = [f"stages: {value!r} {reason}; {fix}" for _, value, reason, fix in problems]
        raise PydanticCustomError("references", "{text}", {"text": "; ".join(texts), "problems": problems})
    return tuple(resolved)


def _model_problem(steps: Sequence[Step], index: int, name: str) -> list[Wrong]:
    before = {step.name: step.stage.produces for step in steps[:index]}
    if name == BASE or before.get(name) == "model":
        return []
    models = [BASE, *(known for known, produces in before.items() if produces == "model")]
    return [(_place(steps, index, name), name, *_why(steps, index, name, "model", models))]


def _data_problems(steps: Sequence[Step], index: int, step: Step) -> list[Wrong]:
    before = {other.name: other.stage.produces for other in steps[:index]}
    data = [known for known, produces in before.items() if produces == "data"]
    wrong: list[Wrong] = []
    for method in methods_in(step.stage):
        name = method.stage if isinstance(method, StageData) else _bare_name(method)
        if name is None or name in data or (not isinstance(method, StageData) and Path(name).exists()):
            continue
        is_stage = name in [other.name for other in steps]
        if isinstance(method, StageData) or is_stage:
            wrong.append((_place(steps, index, name), name, *_why(steps, index, name, "data", data)))
        elif data:
            fix = nearest(name, data)
            wrong.append((_place(steps, index, name), name, "is no file and no stage before this one", fix))
    return wrong


def _why(steps: Sequence[Step], index: int, name: str, kind: str, usable: Sequence[str]) -> tuple[str, str]:
    names = [step.name for step in steps]
    if name == names[index]:
        return "is the stage itself", f"name a stage before it: {', '.join(usable) or 'there is none'}"
    if name in names[index + 1 :]:
        later = index + 1 + names[index + 1 :].index(name)
        back = steps[later].stage.models(previous_of(steps)[later])
        if names[index] in back:
            return f"reads stage {names[index]!r} itself, a circle", "let one of the two read another stage"
        return "comes later in the recipe", "move it before the stage that reads it"
    if name in names[:index]:
        made = steps[names.index(name)].stage.produces
        return f"makes {'only files' if made == 'files' else made}, not {kind}", f"known: {', '.join(usable) or 'none'}"
    return "is no stage before this one", nearest(name, usable)


def _place(steps: Sequence[Step], index: int, name: str) -> Path_:
    """Return where in the stage a name is written."""
    found = next(_paths_to(steps[index].stage.written(), name), ())
    return ("stages", index, *found)


def _paths_to(value: Any, name: str) -> Iterator[Path_]:
    if value == name:
        yield ()
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key == name and isinstance(value, Mapping) and not isinstance(item, Mapping):
            yield (key,)
        yield from ((key, *rest) for rest in _paths_to(item, name))


def _bare_name(method: Method) -> str | None:
    """Return the text of a source that was written as one word, which may be a stage's name."""
    if not isinstance(method, FileSource) or len(method.path) != 1 or method != FileSource(path=method.path):
        return None
    (path,) = method.path
    return None if "/" in path or "." in path else path


def _resolver(steps: Sequence[Step], index: int) -> Callable[[Source], Source]:
    data = {step.name for step in steps[:index] if step.stage.produces == "data"}

    def resolve(source: Source) -> Source:
        name = _bare_name(source)
        return StageData(stage=name) if name in data and name is not None else source

    return resolve


T = TypeVar("T")


def replace_sources(value: T, replace: Callable[[Source], Source]) -> T:
    """Return settings in which every source, however deep, went through `replace`."""
    if isinstance(value, Source):
        return replace(value)  # type: ignore[return-value]
    if isinstance(value, BaseModel):
        changed: dict[str, Any] = {}
        for name in type(value).model_fields:
            before = getattr(value, name)
            after = replace_sources(before, replace)
            if after is not before:
                changed[name] = after
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, list | tuple):
        items = [replace_sources(item, replace) for item in value]
        is_same = all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else type(value)(items)
    if isinstance(value, dict):
        pairs = {key: replace_sources(item, replace) for key, item in value.items()}
        return value if all(pairs[key] is value[key] for key in value) else type(value)(pairs)
    return value
