"""Which code a method is: its file, and the files beside it that it is built on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from functools import cache

from temper.core.hashing import hash_json
from temper.core.version import temper_version


def code_version(module: str, packages: Sequence[str]) -> str:
    """Name the code of a module: its source, that of all it imports from `packages`, and Temper's version."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _source(name)
            waiting += [other for other in _imported(name) if any(_is_in(other, package) for package in packages)]
    return hash_json([temper_version(), module, found])


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@cache
def _source(module: str) -> str:
    try:
        return inspect.getsource(importlib.import_module(module))
    except OSError:  # an empty file, or a method typed into an interpreter
        return ""


@cache
def _imported(module: str) -> tuple[str, ...]:
    return tuple(_imports(_source(module), module))


def _imports(source: str, module: str) -> Iterator[str]:
    """Yield every module that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield origin
            yield from (name for alias in node.names if _is_module(name := f"{origin}.{alias.name}"))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
