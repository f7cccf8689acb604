"""A method of another package, installed through the entry point, is treated like Temper's own in everything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forked

RECIPE = """
base: {new: {family: llama, width: 32, layers: 1, heads: 2, vocabulary: 300, tokenizer_data: [rows.jsonl]}}
measure: {keep: []}
stages:
  - name: adapt
    train:
      data: [rows.jsonl]
      tune: full
      retain: [{outside_pull: {strength: 0.5}}]
      lr: 1e-2
      steps: 3
      batch_size: 2
"""


class Elsewhere:
    """A folder in which Temper and the other package can be used, and nothing else is."""

    def __init__(self, folder: Path, installed: Path, environment: dict[str, str], source: Path) -> None:
        self.folder, self.installed = folder, installed
        # Our own sources first: the checkout that is tested, whatever is installed.
        self.environment = {**environment, "PYTHONPATH": os.pathsep.join([str(source), str(installed)])}

    def run(self, *command: str, code: int = 0) -> str:
        """Run a program that must leave with a code; return what it wrote."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def temper(self, *arguments: str, code: int = 0) -> str:
        """Run a command of Temper that must leave with a code; return what it wrote."""
        done = forked.temper(arguments, self.folder, self.environment, [self.installed])
        assert done.code == code, f"{arguments}\n{done.out}\n{done.err}"
        return done.out + done.err


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, root: Path, environment: dict[str, str]) -> Elsewhere:
    folder = tmp_path_factory.mktemp("elsewhere")
    # Building leaves files beside the sources.
    package = shutil.copytree(root / "tests" / "outside_package", folder / "package")
    installed = folder / "installed"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(installed)]
    command = [sys.executable, "-m", "pip", "install", *options, str(package)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (installed / "outside_methods" / "pull.py").is_file()
    rows = [{"prompt": f"{number} and one is", "completion": f" {number + 1}"} for number in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return Elsewhere(folder, installed, environment, root / "src")


def test_it_is_listed_and_described(elsewhere: Elsewhere) -> None:
    start = (sys.executable, "-c", "from temper.cli import main; main()")
    listed = elsewhere.run(*start, "methods", "retain")
    assert "outside_pull" in listed and "replay" in listed and "arXiv:1802.01483" in listed
    described = elsewhere.temper("methods", "outside_pull")
    assert "outside_pull (retain, outside_methods.pull)" in described
    assert "strength  number; required; at least 0; s: how strongly" in described


def test_its_settings_are_validated(elsewhere: Elsewhere) -> None:
    setting = "stages.adapt.train.retain=[{outside_pull: {strength: -1}}]"
    said = elsewhere.temper("run", "recipe.yaml", setting, code=2)
    assert "stages[0].train.retain[0].outside_pull.strength: -1" in said
    said = elsewhere.temper("run", "recipe.yaml", "stages.adapt.train.retain=[outside_pul]", code=2)
    assert "did you mean 'outside_pull'?" in said


def test_it_runs_and_its_code_is_part_of_the_stages_name(elsewhere: Elsewhere) -> None:
    elsewhere.temper("run", "recipe.yaml")
    (folder,) = (elsewhere.folder / "runs" / "recipe").glob("adapt-*")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["penalty"] == 0 and metrics[2]["penalty"] > 0
    record = json.loads((folder / "stage.json").read_text())
    assert record["status"] == "done" and "retain/outside_pull" in record["code"]


def test_it_is_probed(elsewhere: Elsewhere) -> None:
    said = elsewhere.temper("methods", "outside_pull+tune", "--probe", "--to", "combinations.md")
    assert "works" in said and "defect" not in said
    trials = json.loads((elsewhere.folder / "combinations.json").read_text())
    pairs = {tuple(trial["methods"]): trial["outcome"] for trial in trials if len(trial["methods"]) == 2}
    # Axes come in the order of their names.
    assert pairs[("retain/outside_pull", "tune/full")] == pairs[("retain/outside_pull", "tune/lora")] == "works"


def test_it_is_documented(elsewhere: Elsewhere) -> None:
    elsewhere.run(sys.executable, "-m", "temper.pipeline.pages", "pages", "outside_methods")
    pages = elsewhere.folder / "pages"
    assert "[outside_pull](retain/outside_pull.md)" in (pages / "README.md").read_text()
    page = (pages / "retain" / "outside_pull.md").read_text()
    assert "# retain: outside_pull" in page and "| `strength` | number | required | at least 0 |" in page
    assert "Written in `outside_methods.pull`." in page
    assert not (pages / "tune").exists(), "the methods of this package alone"
