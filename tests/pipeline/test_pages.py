"""The methods' pages: every method and setting is on one, and the committed ones are up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from temper.core.methods import Method, Settings
from temper.pipeline.catalogue import AxisPage, catalogue, page
from temper.pipeline.pages import method_page, nested_settings, write_method_pages


class Inner(Settings):
    size: int = Field(2, ge=1, description="how big")


class Answer(Method):
    """Think for a while
    and answer.

    Paper: The Answer to Everything, arXiv:1234.56789.
    """

    count: int = Field(description="a | b", gt=0)
    parts: tuple[Inner, ...] = Field((), description="what it is made of")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    write_method_pages(folder)
    return folder


@pytest.fixture(scope="module")
def axes() -> list[AxisPage]:
    return catalogue()


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}


def test_committed_pages_are_the_generated_ones(generated: Path, root: Path) -> None:
    assert texts(root / "docs" / "methods") == texts(generated), "run `make docs` and commit what it writes"


def test_every_method_has_a_page_that_holds_every_setting(generated: Path, axes: list[AxisPage]) -> None:
    found = texts(generated)
    ours = [method for axis in axes for method in axis.methods if method.module.startswith("temper.")]
    assert {"README.md", *(f"{method.axis}/{method.name}.md" for method in ours)} == set(found)
    for method in ours:
        written = found[f"{method.axis}/{method.name}.md"]
        assert [field.name for field in method.fields if f"| `{field.name}` |" not in written] == []
        assert f"({method.axis}/{method.name}.md)" in found["README.md"]


def test_every_method_and_setting_says_what_it_is(axes: list[AxisPage]) -> None:
    ours = [method for axis in axes for method in axis.methods if method.module.startswith("temper.")]
    assert [(method.axis, method.name) for method in ours if not method.text] == []
    assert [(it.axis, it.name, field.name) for it in ours for field in it.fields if not field.description] == []


def test_page_links_the_paper_shows_nested_settings_and_escapes_tables() -> None:
    text = method_page(page(Answer), dict(nested_settings(Answer)))
    assert "[arXiv:1234.56789](https://arxiv.org/abs/1234.56789)" in text
    count = next(line for line in text.splitlines() if line.startswith("| `count`"))
    assert "| required |" in count and "a \\| b" in count
    assert "### inner" in text and "| `size` | integer | `2` |" in text
