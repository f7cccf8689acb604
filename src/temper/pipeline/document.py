"""Recipes as text: YAML with the traps taken out, and the line on which every key stands.

Decisions:
- PyYAML's safe loader builds no object but mappings, lists, strings, numbers, booleans and null. Its YAML 1.1
  readings that surprise are replaced by YAML 1.2's: `1e-4` is a number, `no`, `off` and `2024-01-31` are
  strings, `010` is ten and `1:30` is not ninety.
- A key that is written twice is an error, since one of the two would be lost. A merge key (`<<: *shared`) may
  still be overridden beside it.
- The document that comes out is plain JSON values. Lines are kept beside it, by path, so that an error that
  is found much later can say where.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from temper.core.errors import DataError, SettingError, nearest

Step = str | int
_KINDS = frozenset({"str", "bool", "null", "int", "float", "seq", "map"})
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_VALUES = 100_000
"""a recipe that unfolds to more values than this (aliases of aliases) is refused"""


@dataclass
class Document:
    """A recipe as written."""

    value: dict[str, Any]
    lines: dict[tuple[Step, ...], int] = field(default_factory=dict)
    """1-based line of every key and list item, by path"""
    source: str | None = None
    """the file's name"""
    overridden: list[tuple[tuple[Step, ...], str]] = field(default_factory=list)
    """the overrides that were applied: path and text"""

    def line(self, path: tuple[Step, ...]) -> int | None:
        """Return the line of the nearest written ancestor of a path."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def show_path(path: tuple[Step, ...]) -> str:
    """Write a path as a user does: `stages[1].train.lr`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "recipe"


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own seam)


_NUMBER = "-+.0123456789"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", _NUMBER),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", _NUMBER),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 16) if text.startswith("0x") else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_value(text: str) -> Any:
    """Read the value of an override with the same rules as a recipe's."""
    try:
        return _build(text, {})
    except yaml.YAMLError as error:
        raise SettingError("override", text, f"is not YAML ({_problem(error)})", "quote the value") from error


def read_document(path: Path) -> Document:
    """Read a recipe's file.

    Raises:
        DataError: no file, not UTF-8, not YAML, a key written twice, or not a mapping; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(path, None, "there is no such file", "name a recipe's YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, None, f"cannot be read ({error})", "name a recipe's YAML file in UTF-8") from error
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> Document:
    """Read a recipe's text; `source` is its name in errors. Raises as `read_document` does."""
    document = Document({}, {}, source)
    try:
        value = _build(text, document.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DataError(source, mark.line + 1 if mark else None, _problem(error), _fix(error)) from error
    except yaml.YAMLError as error:
        raise DataError(source, None, _problem(error), "write plain YAML") from error
    if not isinstance(value, dict):
        raise DataError(source, 1, "a recipe is a mapping with the key `stages`", "see the recipes in `recipes/`")
    document.value = value
    return document


def _build(text: str, lines: dict[tuple[Step, ...], int]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Walk(lines).visit(node, (), ())
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Walk:
    """One pass over the nodes: lines, keys written twice, keys that are not text, unfolding without end."""

    def __init__(self, lines: dict[tuple[Step, ...], int]) -> None:
        self.lines, self.left = lines, MAX_VALUES

    def visit(self, node: yaml.Node, path: tuple[Step, ...], above: tuple[int, ...]) -> None:
        self.left -= 1
        if id(node) in above or self.left < 0:
            raise yaml.constructor.ConstructorError(None, None, "an alias that contains itself", node.start_mark)
        if node.tag.rpartition(":")[2] not in _KINDS:
            problem = f"could not determine a constructor for the tag {node.tag!r}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
            raise yaml.constructor.ConstructorError(None, None, "half of a character", node.start_mark)
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                self.visit(item, (*path, index), above)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        self.visit(merged, path, above)
                    continue
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key that is not a name", key.start_mark)
                if key.value in seen:
                    problem = f"the key {key.value!r} is written twice, first on line {seen[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen[key.value] = line
                key.tag = "tag:yaml.org,2002:str"
                self.lines[(*path, key.value)] = line
                self.visit(value, (*path, key.value), above)


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return f"{error.context}: {error.problem}" if error.context else error.problem
    return str(error)


def _fix(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "'\\t'" in problem:
        return "YAML is indented with spaces, never tabs"
    if "written twice" in problem:
        return "keep one of the two"
    if "half of a character" in problem:
        return "write the character itself, or \\U with eight digits"
    if "mapping values are not allowed" in problem:
        return "check the indentation, and quote values that contain a colon and a space"
    if "could not determine a constructor" in problem:
        return "remove the tag (a word that begins with `!`)"
    return "check the indentation and the brackets of this line and the one before"


_SEGMENT = re.compile(r"([^.\[\]=]+)|\[(\d+)\]")


def override(document: Document, text: str) -> None:
    """Apply `dotted.key=value` to a document; stages are named by name or by index.

    A method written as plain text (`tune: lora`) opens into a mapping when one of its settings is given.

    Raises:
        SettingError: no `=`, a path that leads nowhere, or an unknown stage.
    """
    key, equals, written = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(text, text, "is not an override", "write dotted.key=value, as in stages.adapt.train.lr=1e-4")
    path = path_of(document, key, text)
    if isinstance(path[0], int):
        raise SettingError(key, text, "is not a path to a setting", "begin with a key of the recipe, as in stages[0]")
    value = read_value(written)
    place: Any = document.value
    for here, (step, following) in enumerate(itertools.pairwise(path)):
        below = place.get(step) if isinstance(place, dict) else place[step]
        if below is None or (isinstance(below, str) and below == following):
            below = place[step] = {}
        if isinstance(below, str) and not isinstance(following, int):
            _refuse(path[: here + 1], below, f"{text!r}", f"has no settings named {following!r} here")
        if not isinstance(below, dict | list) or isinstance(below, list) != isinstance(following, int):
            _refuse(path[: here + 1], below, f"{text!r}", "cannot be entered so")
        if isinstance(below, list) and isinstance(following, int) and following >= len(below):
            _refuse(path[: here + 1], below, f"{text!r}", f"has {len(below)} items, counted from 0")
        place = below
    place[path[-1]] = value
    for known in [known for known in document.lines if known[: len(path)] == path]:
        del document.lines[known]
    document.overridden.append((path, text))


def path_of(document: Document, key: str, text: str = "") -> tuple[Step, ...]:
    """Return where a dotted key leads, stages by index.

    Args:
        text: what it was written in, for the error.

    Raises:
        SettingError: an unknown stage.
    """
    return _resolve(document.value, _split(key.strip()), text or key)


def _refuse(path: tuple[Step, ...], value: object, text: str, reason: str) -> None:
    raise SettingError(show_path(path), value, reason, f"correct the override {text}")


def _split(key: str) -> list[Step]:
    steps: list[Step] = []
    position = 0
    while position < len(key):
        match = _SEGMENT.match(key, position)
        if match is None:
            raise SettingError(key, key, "is not a path to a setting", "write names with dots and [index] between")
        steps.append(match[1] if match[1] is not None else int(match[2]))
        position = match.end()
        if position < len(key) and key[position] == ".":
            position += 1
    return steps


def _resolve(value: dict[str, Any], steps: list[Step], text: str) -> tuple[Step, ...]:
    """Turn a stage's name into its index."""
    if len(steps) < 2 or steps[0] != "stages" or isinstance(steps[1], int):
        return tuple(steps)
    stages = value.get("stages")
    names = [stage.get("name") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    if isinstance(stages, list) and steps[1] in names:
        index = next(i for i, stage in enumerate(stages) if isinstance(stage, dict) and stage.get("name") == steps[1])
    elif steps[1].isdigit():
        index = int(steps[1])
    else:
        hint = nearest(steps[1], [str(name) for name in names if name])
        raise SettingError(f"stages.{steps[1]}", text, "names a stage that the recipe does not have", hint)
    return ("stages", index, *steps[2:])
