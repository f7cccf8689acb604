"""What README.md and CONTRIBUTING.md show works: commands run, recipes are valid, Python runs.

The blocks of both files are done in order in one folder, as a reader would. A comment before a block says what
is special about it:

- `<!-- file: NAME -->` the block is written to NAME, for the blocks that follow.
- `<!-- not run: REASON -->` the block cannot run in a test.

A `make` command is checked to exist; what `make demo` runs is run, and `make test` is what runs this.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from temper.pipeline.recipe import Recipe
from temper.pipeline.result import Run

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ("README.md", "CONTRIBUTING.md")
FENCE = re.compile(r"(?:^<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"console", "yaml", "python", "json", "text"}
SHOWN = {"text"}
"""what is only shown: tables and output"""


@dataclass(frozen=True)
class Block:
    paper: str
    line: int
    language: str
    text: str
    note: str

    @property
    def file(self) -> str | None:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run: ") and self.language not in SHOWN

    @property
    def commands(self) -> list[str]:
        """The commands of a console block: what follows `$ `, with continued lines."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def blocks() -> Iterator[Block]:
    for paper in PAPERS:
        text = (ROOT / paper).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("text"))
            yield Block(paper, line, match["language"], match["text"], match["note"] or "")


BLOCKS = list(blocks())


def test_blocks_work(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """All of them, in order: a block uses what the blocks before it have written."""
    shutil.copytree(root / "recipes", tmp_path / "recipes")
    for block in BLOCKS:
        if block.is_run:
            do(block, tmp_path, environment)
    _check_demo(Run(tmp_path / "runs" / "demo"))


def _check_demo(demo: Run) -> None:
    """What the README says of the demo: a new skill from nothing, forgetting without replay and none with it."""
    value = {
        name: {label: suite["value"] for label, suite in stage.suites.items()} for name, stage in demo.stages.items()
    }
    new, known = "lab/sort_descending", ("lab/copy", "lab/shift", "lab/sort")
    assert value["base"][new] < 0.05 and all(value["base"][suite] > 0.9 for suite in known)
    assert value["adapt"][new] > 0.9 and all(value["adapt"][suite] < 0.5 for suite in known)
    assert value["careful"][new] > 0.9 and all(value["careful"][suite] > 0.8 for suite in known)


def do(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Do one block as a reader in the folder would."""
    place = f"{block.paper}:{block.line}"
    if block.file is not None:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    elif block.language == "yaml":
        path = folder / "shown.yaml"
        path.write_text(block.text, encoding="utf-8")
        Recipe.load(path)
    elif block.language == "python":
        run(place, [sys.executable, "-c", block.text], folder, environment)
    for command in block.commands if block.language == "console" else ():
        if command.startswith("make "):
            run(place, [*command.split(), "--dry-run", "--always-make"], ROOT, environment)
        else:
            run(place, ["bash", "-euo", "pipefail", "-c", command], folder, environment)


def run(place: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{place}: {' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    for block in BLOCKS:
        assert block.language != "console" or block.commands, f"{block.paper}:{block.line}: no line begins with `$ `"
    fences = sum((ROOT / paper).read_text(encoding="utf-8").count("\n```") for paper in PAPERS)
    assert fences == 2 * len(BLOCKS), "a block that is not closed, or indented"


def test_demo_is_among_the_commands() -> None:
    recipe = re.search(r"^DEMO \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    assert f"temper run {recipe[1]}" in [command for block in BLOCKS if block.is_run for command in block.commands]


@pytest.mark.parametrize("paper", PAPERS)
def test_links_lead_somewhere(paper: str) -> None:
    text = (ROOT / paper).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text) + re.findall(r'src="(?!https?://)([^"]+)"', text)
    assert [target for target in targets if not (ROOT / target).exists()] == []
