"""The methods' pages: every method and setting is on one, and the committed ones are up to date."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from temper.core.methods import AXES, Method, Settings
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
def generated(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "methods"
    write_method_pages(folder, facts=root / "docs")
    return folder


@pytest.fixture(scope="module")
def axes() -> list[AxisPage]:
    return catalogue()


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}


def test_committed_pages_are_the_generated_ones(generated: Path, root: Path) -> None:
    # From the place of the generated pages, it is another way to the table of combinations.
    table = re.compile(r"\([^()\s]*/combinations\.md\)")
    moved = {path: table.sub("(../../combinations.md)", text) for path, text in texts(generated).items()}
    assert texts(root / "docs" / "methods") == moved, "run `make docs` and commit what it writes"


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


def test_marks_of_a_docstring_begin_paragraphs() -> None:
    class Marked(Method):
        """Think.

        Paper: A Title, arXiv:1234.56789.
        Symbols: a is `b`. Deviation: none.
        """

    text = method_page(page(Marked), {})
    assert "\n\n**Symbols:** a is `b`.\n\n**Deviation:** none.\n" in text


def test_pages_tell_what_a_method_needs(axes: list[AxisPage]) -> None:
    needs = {method.path: " | ".join(method.needs) for axis in axes for method in axis.methods}
    assert "rows of format class" in needs["objective/classify"]
    assert "calibration pass" in needs["init/eva"] and "calibration pass" not in needs["init/kaiming"]
    assert "another model's" in needs["objective/dpo"] and "another model's" not in needs["objective/simpo"]
    assert "may be divided" in needs["tune/full"] and "every tensor whole" in needs["tune/lora"]
    assert "no backward pass" in needs["optimizer/seeds"] and "no backward" not in needs["optimizer/adamw"]
    assert "other data" in needs["retain/replay"] and "held out of each source" in needs["mix/skill_it"]
    assert "data to learn from" in needs["merge/learned_soup"] and "data" not in needs["merge/linear"]
    assert "the model that rows" in needs["select/grape"] and needs["select/random"].startswith("rows of format")
    for axis in axes:
        for method in axis.methods:
            text = method_page(method, {})
            assert all(f"- {need}" in text for need in method.needs), method.path


def test_extras_are_declared_where_a_package_may_be_missing(axes: list[AxisPage], root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for axis in axes:
        for method in AXES[axis.name].methods().values():
            source = Path(inspect.getfile(method)).read_text(encoding="utf-8")
            if "MissingExtra(" in source and method.__module__.startswith("temper."):
                assert method.extra in project["optional-dependencies"], method
                assert f"[{method.extra}]" in " ".join(method.needs())
