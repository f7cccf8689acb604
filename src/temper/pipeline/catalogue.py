"""Every method with its settings, read from the classes themselves."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from temper.core.methods import AXES, Method, load_entry_points

PACKAGE = Path(__file__).parent.parent
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class FieldPage:
    """One setting."""

    name: str
    type: str
    is_required: bool
    default: Any
    limits: str
    description: str


@dataclass(frozen=True)
class MethodPage:
    """One method."""

    axis: str
    name: str
    summary: str
    text: str
    """the docstring"""
    source: str
    """title and arXiv id of the paper, where there is one"""
    module: str
    fields: tuple[FieldPage, ...]
    needs: tuple[str, ...]
    """of its surroundings, as its class declares"""

    @property
    def path(self) -> str:
        """`axis/name`"""
        return f"{self.axis}/{self.name}"


@dataclass(frozen=True)
class AxisPage:
    """One axis: the question that it answers, and its methods."""

    name: str
    question: str
    methods: tuple[MethodPage, ...]


def import_methods() -> None:
    """Make every axis and every method known, third parties' included."""
    for info in pkgutil.walk_packages([str(PACKAGE)], "temper."):
        if not info.name.startswith("temper.cli"):
            importlib.import_module(info.name)
    load_entry_points()


def catalogue() -> list[AxisPage]:
    """Return every axis with every method, third parties' included."""
    import_methods()
    return [
        AxisPage(axis, _summary(owner), tuple(page(method) for method in owner.methods().values()))
        for axis, owner in sorted(AXES.items())
        if owner.__module__.partition(".")[0] == "temper" or owner.methods()
    ]


def page(method: type[Method]) -> MethodPage:
    """Return a method's page."""
    text = inspect.getdoc(method) or ""
    return MethodPage(
        axis=method.axis,
        name=method.method_name,
        summary=_summary(method),
        text=text,
        source=_source(text),
        module=method.__module__,
        fields=tuple(fields(method)),
        needs=method.needs(),
    )


def fields(owner: type[BaseModel]) -> Iterator[FieldPage]:
    """Yield the settings of a class as they are written in a recipe."""
    for name, field in owner.model_fields.items():
        yield FieldPage(
            field.alias or name,
            show_type(field.annotation),
            field.is_required(),
            _default(field),
            ", ".join(dict.fromkeys(filter(None, map(_show_limit, _limits(field))))),
            field.description or "",
        )


def show_type(annotation: Any) -> str:
    """Write a type as a reader of YAML expects it."""
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), [item for item in get_args(annotation) if item is not Ellipsis]
    if origin is Annotated:
        return show_type(arguments[0])
    if inspect.isclass(annotation) and not arguments:
        if issubclass(annotation, Method) and annotation.axis:
            return annotation.method_name or annotation.axis
        names = {str: "text", int: "integer", float: "number", bool: "true or false"}
        return names.get(annotation, annotation.__name__.lower())
    if origin in (list, tuple, Sequence):
        return f"list of {' or '.join(dict.fromkeys(map(show_type, arguments)))}"
    if origin in (dict, Mapping):
        return f"mapping of {show_type(arguments[0])} to {show_type(arguments[1])}"
    if origin is Literal:
        return " or ".join(str(to_jsonable_python(item)) for item in arguments)
    if arguments:
        return " or ".join(dict.fromkeys(map(show_type, arguments)))
    return str(annotation)


def _default(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return None
    return to_jsonable_python(default.written() if isinstance(default, Method) else default)


def _limits(field: FieldInfo) -> Iterator[object]:
    """Yield a setting's limits, those of the number in `number or null` included."""
    yield from field.metadata
    for part in get_args(field.annotation):
        if get_origin(part) is Annotated:
            yield from get_args(part)[1:]


def _show_limit(limit: object) -> str:
    """Write a limit of a setting in words, nothing for what is no limit."""
    if isinstance(limit, Ge | Gt):
        return f"at least {limit.ge}" if isinstance(limit, Ge) else f"above {limit.gt}"
    if isinstance(limit, Le | Lt):
        return f"at most {limit.le}" if isinstance(limit, Le) else f"below {limit.lt}"
    if isinstance(limit, MinLen | MaxLen):
        return f"{limit.min_length} or more" if isinstance(limit, MinLen) else f"{limit.max_length} or fewer"
    return ""


def _summary(owner: type) -> str:
    return (inspect.getdoc(owner) or "").partition("\n\n")[0].replace("\n", " ")


def _source(text: str) -> str:
    for paragraph in text.split("\n\n"):
        joined = " ".join(paragraph.split())
        for mark in ("Paper: ", "Source: "):
            if mark in joined:
                cited = joined.partition(mark)[2]
                arxiv = _ARXIV.search(cited)
                return cited[: arxiv.end()] if arxiv else cited.partition(". ")[0].rstrip(".")
    return ""
