"""YAML with its traps taken out, lines, and overrides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temper.core.errors import DataError, SettingError
from temper.pipeline.document import Document, override, parse_document, read_value


def parse(text: str) -> Document:
    return parse_document(text, "r.yaml")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("010", 10),
        ("0x1f", 31),
        ("1_000", 1000),
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("1.2.3", "1.2.3"),
        ("-", [None]),
        ("'1e-4'", "1e-4"),
        (".inf", ".inf"),
    ],
)
def test_plain_scalars_mean_what_they_look_like(written: str, value: object) -> None:
    read = read_value(written)
    assert read == value and type(read) is type(value)


def test_lines_are_kept_by_path() -> None:
    document = parse("base: x\nstages:\n  - name: a\n    train:\n      lr: 1\n  - name: b\n")
    assert document.lines[("stages", 0, "train", "lr")] == 5
    assert document.lines[("stages", 1, "name")] == 6
    # A path that nobody wrote has the line of what is above it.
    assert document.line(("stages", 0, "train", "tune", "lora")) == 4


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "written twice, first on line 1"),
        ("a:\n  c: 1\n  c: 1\n", 3, "written twice, first on line 2"),
        ("a:\n\tb: 1\n", 2, "spaces, never tabs"),
        ("a: b: c\n", 1, "quote values"),
        ("a: [1, 2\nb: 3\n", 2, "brackets"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "remove the tag"),
        ("a: !!timestamp 2024-01-31\n", 1, "remove the tag"),
        ("a: &x [*x]\n", 1, "contains itself"),
        ("? [1]\n: 2\n", 1, "not a name"),
        ('a: "\\ud83d\\ude00"\n', 1, "write the character itself"),
        ("- a\n", 1, "is a mapping"),
        ("", 1, "is a mapping"),
    ],
)
def test_broken_documents_name_the_line(text: str, line: int, said: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(text)
    assert caught.value.line == line
    assert said in str(caught.value)


def test_aliases_that_unfold_without_end_are_refused() -> None:
    text = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(DataError, match="alias"):
        parse(text)


def test_a_merge_key_may_be_overridden_beside_it() -> None:
    document = parse("shared: &s {lr: 1, steps: 2}\none:\n  <<: *s\n  lr: 3\n")
    assert document.value["one"] == {"lr": 3, "steps": 2}


def test_files_that_are_no_recipes(tmp_path: Any) -> None:
    from temper.pipeline.document import read_document

    with pytest.raises(DataError, match="no such file"):
        read_document(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_document(tmp_path / "latin.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        read_document(tmp_path)


RECIPE = "seed: 1\nstages:\n  - name: a\n    train: {tune: lora, data: [x, y]}\n  - name: b\n    train:\n"


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("stages.a.train.lr=3e-4", ("stages", 0, "train", "lr"), 3e-4),
        ("stages[1].train.lr=1", ("stages", 1, "train", "lr"), 1),
        ("stages.1.train.lr=1", ("stages", 1, "train", "lr"), 1),
        ("stages.a.train.tune.lora.rank=4", ("stages", 0, "train", "tune", "lora", "rank"), 4),
        ("stages.a.train.data[1]=z", ("stages", 0, "train", "data", 1), "z"),
        ("measure.gain=[lab/copy]", ("measure", "gain"), ["lab/copy"]),
        ("stages.a.train.note=a=b", ("stages", 0, "train", "note"), "a=b"),
    ],
)
def test_overrides(text: str, path: tuple[Any, ...], value: object) -> None:
    document = parse(RECIPE)
    override(document, text)
    found: Any = document.value
    for step in path:
        found = found[step]
    assert found == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "not an override"),
        ("=3", "not an override"),
        ("stages.c.train.lr=1", "known: a, b"),
        ("stages.a.train.tune.full.rank=4", "'lora' has no settings named 'full'"),
        ("stages[7].train.lr=1", "2 items"),
        ("stages.a.train.data[2]=z", "2 items"),
        ("seed.x=1", "cannot be entered"),
        ("stages..x=1", "not a path"),
        ("[0].x=1", "begin with a key"),
        ("seed=[1", "not YAML"),
    ],
)
def test_overrides_that_lead_nowhere(text: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        override(parse(RECIPE), text)
    assert said in str(caught.value)


TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
"""JSON escapes what lies beyond as two halves, which YAML reads one by one"""
KEY = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=60)
"""YAML takes keys of at most 1,024 characters, escapes included, on one line"""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(KEY, inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(KEY, JSON, max_size=4))
def test_json_is_yaml(value: dict[str, Any]) -> None:
    """Any JSON object reads as itself (characters that YAML forbids are escaped in JSON)."""
    assert parse(json.dumps(value)).value == value


@given(st.text())
def test_any_text_is_read_or_explained(text: str) -> None:
    try:
        document = parse(text)
    except DataError:
        return
    assert isinstance(document.value, dict)
