"""The wheel, in an environment that holds nothing else: what `pip install temper-llm` would give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
base: {new: {family: llama, width: 32, layers: 1, heads: 2, vocabulary: 300, tokenizer_data: [rows.jsonl]}}
measure: {gain: [rows.jsonl], examples: 4}
stages:
  - name: adapt
    train: {data: [rows.jsonl], tune: full, steps: 2, batch_size: 2}
"""


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(root)], folder)
    (built,) = folder.glob("*.whl")
    return built


def run(command: list[str], folder: Path) -> str:
    """Run a program that must end well, away from the checkout and its PYTHONPATH."""
    hidden = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_holds_all_that_the_source_folder_holds(root: Path, wheel: Path) -> None:
    source = root / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "temper").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= held
    assert {"temper/py.typed", "temper/report/page.html.j2"} <= held
    assert {name.split("/")[0].split("-")[0] for name in held} == {"temper", "temper_llm"}, "nothing beside the package"


def test_metadata(wheel: Path, project: dict[str, Any]) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert f"Name: temper-llm\nVersion: {project['version']}\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert any(entry.endswith("licenses/LICENSE") for entry in archive.namelist())
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert "Requires-Dist: torch>=2.11" in required, "the package itself must not hold torch below a version"
    assert not [line for line in required if "==" in line]


def test_installed_alone_it_works_from_another_folder(root: Path, wheel: Path, tmp_path: Path) -> None:
    """An environment with the wheel and what the wheel asks for: help, every module, a run."""
    clean, elsewhere = tmp_path / "clean", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([sys.executable, "-m", "venv", str(clean)], elsewhere)
    python, temper = str(clean / "bin/python"), str(clean / "bin/temper")
    constraints = ["--constraint", str(root / "constraints.txt")]
    run([python, "-m", "pip", "install", "-q", "--no-compile", *constraints, str(wheel)], elsewhere)

    text = run([temper, "--help"], elsewhere)
    assert all(command in text for command in ("run", "preview", "methods", "measure", "report", "export", "doctor"))

    program = (
        "import importlib, json, pkgutil, temper\n"
        "names = [info.name for info in pkgutil.walk_packages(temper.__path__, 'temper.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(json.dumps([temper.__path__[0], len(names)]))"
    )
    place, count = json.loads(run([python, "-c", program], elsewhere))
    assert Path(place).is_relative_to(clean)
    assert count > 50

    rows = [{"prompt": f"{number} and one is", "completion": f" {number + 1}"} for number in range(20)]
    (elsewhere / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (elsewhere / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    run([temper, "run", "recipe.yaml"], elsewhere)
    assert (elsewhere / "runs/recipe/report.html").stat().st_size > 10_000
    assert "adapt" in run([temper, "report", "runs/recipe"], elsewhere)
    shutil.rmtree(clean)  # over a gigabyte, and pytest would keep it
