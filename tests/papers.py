"""What README.md and CONTRIBUTING.md show, block by block, and how a reader would do it.

A comment before a block says what is special about it:

- `<!-- file: NAME -->` the block is written to NAME, for the blocks that follow.
- `<!-- not run: REASON -->` the block cannot run in a test.

The blocks of a section (a heading of the second level) are done in order in one folder; no section needs another one's.
A section's first command is given to a shell; the others of Temper's are forked from a process that has imported it.
A `make` command is checked to exist; what `make demo` runs is run, and `make test` is what runs this.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
from temper.pipeline.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ("README.md", "CONTRIBUTING.md")
FENCE = re.compile(r"(?:^<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
LANGUAGES = {"console", "yaml", "python", "json", "text"}
SHOWN = {"text"}
"""what is only shown: tables and output"""


@dataclass(frozen=True)
class Block:
    paper: str
    section: str
    """the heading that it stands under; the paper's name before the first"""
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


def _blocks() -> Iterator[Block]:
    for paper in PAPERS:
        text = (ROOT / paper).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("text"))
            section = [paper, *HEADING.findall(text[: match.start()])][-1]
            yield Block(paper, section, line, match["language"], match["text"], match["note"] or "")


BLOCKS = list(_blocks())
SECTIONS = list(dict.fromkeys((block.paper, block.section) for block in BLOCKS if block.is_run))
DEMO = ("README.md", "Commands")
"""the section whose commands take longest, most of them on one run of the demo"""


def do_section(paper: str, section: str, folder: Path, environment: dict[str, str]) -> None:
    """Do a section's blocks in order: a block uses what the blocks before it have written."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    is_first = True
    for block in BLOCKS:
        if (block.paper, block.section) == (paper, section) and block.is_run:
            do(block, folder, environment, is_first)
            is_first = is_first and not block.commands


def do(block: Block, folder: Path, environment: dict[str, str], is_first: bool) -> None:
    """Do one block as a reader in the folder would.

    Args:
        is_first: whether no command was given yet.
    """
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
    for number, command in enumerate(block.commands if block.language == "console" else ()):
        if command.startswith("make "):
            run(place, [*command.split(), "--dry-run", "--always-make"], ROOT, environment)
        elif command.startswith("temper ") and not (is_first and number == 0):
            done = forked.temper(shlex.split(command)[1:], folder, environment)
            assert done.code == 0, f"{place}: {command}\n{done.out}\n{done.err}"
        else:
            run(place, ["bash", "-euo", "pipefail", "-c", command], folder, environment)


def run(place: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{place}: {' '.join(command)}\n{done.stdout}\n{done.stderr}"
