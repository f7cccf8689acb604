"""The floors of the house: an import only points down, the bottom floor is light, files stay readable."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import temper

PACKAGE = Path(temper.__path__[0])
FLOORS = (
    {"core"},
    {"models", "data"},
    {"delta", "lab"},
    {"signals"},
    {
        "tune",
        "optim",
        "objectives",
        "retain",
        "mix",
        "verify",
        "select",
        "synthesize",
        "merge",
        "compress",
        "decode",
        "federate",
        "hold",
        "measure",
    },
    {"engine"},
    {"stages"},
    {"pipeline", "report"},
    {"cli"},
)
"""from the bottom to the top; packages on one floor may use each other, without a circle"""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
TOP = len(FLOORS)
"""the package itself, `temper/__init__.py`, stands above all"""
MODULES = sorted(info.name for info in pkgutil.walk_packages(temper.__path__, "temper."))
MOST_LINES = 600


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything of ours that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "temper")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write absolute imports"
            if node.module == "temper":
                yield from ((node.lineno, f"temper.{alias.name}") for alias in node.names)
            elif node.module and node.module.startswith("temper."):
                yield node.lineno, node.module


def package_of(dotted: str) -> str:
    """Return the floor's package in `temper.package.module`; what is no package is the top."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def floor_of(package: str) -> int:
    return FLOOR[package] if package else TOP


def our_files() -> list[tuple[Path, str]]:
    """Return every source file and the package that it lies in."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [(path, path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else "") for path in files]


def test_every_folder_has_a_floor() -> None:
    assert {package for _, package in our_files()} - {""} <= set(FLOOR)


def test_an_import_only_points_down() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)}:{line}: {package} imports {name}"
        for path, package in our_files()
        for line, name in imports(path)
        if floor_of(package_of(name)) > floor_of(package)
    ]
    assert not upward, "\n".join(upward)


def test_packages_of_one_floor_form_no_circle() -> None:
    uses: dict[str, set[str]] = {name: set() for name in FLOOR}
    for path, package in our_files():
        uses.setdefault(package, set()).update({package_of(name) for _, name in imports(path)} - {package})
    TopologicalSorter(uses).prepare()  # raises CycleError, which shows the circle


@pytest.mark.parametrize("module", MODULES)
def test_module_imports(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("temper.core.")])
def test_core_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*{{'torch', 'transformers', 'pyarrow', 'numpy'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.split() == []


def test_files_are_short(root: Path) -> None:
    files = [*PACKAGE.rglob("*.py"), *(root / "tests").rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {str(path): length for path, length in lengths.items() if length > MOST_LINES}
