"""What README.md and CONTRIBUTING.md show works: commands run, recipes are valid, Python runs.

The longest section has a file of its own, `test_readme_commands.py`, so that two workers share the work.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from papers import BLOCKS, DEMO, LANGUAGES, PAPERS, ROOT, SECTIONS, do_section

pytestmark = pytest.mark.starts_first


@pytest.mark.parametrize(("paper", "section"), [place for place in SECTIONS if place != DEMO])
def test_section_works(paper: str, section: str, tmp_path: Path, environment: dict[str, str]) -> None:
    do_section(paper, section, tmp_path, environment)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    for block in BLOCKS:
        assert block.language != "console" or block.commands, f"{block.paper}:{block.line}: no line begins with `$ `"
    fences = sum((ROOT / paper).read_text(encoding="utf-8").count("\n```") for paper in PAPERS)
    assert fences == 2 * len(BLOCKS), "a block that is not closed, or indented"


def test_demo_is_among_the_commands() -> None:
    recipe = re.search(r"^DEMO \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    ours = [block for block in BLOCKS if block.is_run and (block.paper, block.section) == DEMO]
    assert f"temper run {recipe[1]}" in [command for block in ours for command in block.commands]


@pytest.mark.parametrize("paper", PAPERS)
def test_links_lead_somewhere(paper: str) -> None:
    text = (ROOT / paper).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text) + re.findall(r'src="(?!https?://)([^"]+)"', text)
    assert [target for target in targets if not (ROOT / target).exists()] == []
