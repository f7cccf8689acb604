"""Each written format becomes one of the five; what fits none or several is refused with its columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from temper.core.errors import DataError
from temper.data.formats import NEEDED, BadValue, detect, shape
from temper.data.source import Source

HI, HELLO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def read(folder: Path, record: dict[str, Any], **options: Any) -> Any:
    (folder / "rows.jsonl").write_text(json.dumps(record))
    source = Source.parse({"file": {"path": str(folder / "rows.jsonl"), **options}})
    return source.open("train", folder / "cache").take([0])[0]


SHAREGPT = {
    "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", "weight": 0.5}],
    "system": "be kind",
    "id": 7,
}
ALPACA = {"instruction": "add", "input": "2 2", "output": "4", "history": [["hi", "hello"]], "task": "sum"}
CASES: list[tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]] = [
    ({"text": "a", "task": "t"}, "text", {"text": "a"}, {"task": "t"}),
    ({"messages": [HI, HELLO], "score": 1}, "messages", {"messages": [HI, HELLO]}, {"score": 1}),
    (
        SHAREGPT,
        "messages",
        {"messages": [{"role": "system", "content": "be kind"}, HI, {**HELLO, "weight": 0.5}]},
        {"id": 7},
    ),
    (
        ALPACA,
        "messages",
        {
            "messages": [
                HI,
                HELLO,
                {"role": "user", "content": "add\n\n2 2"},
                {"role": "assistant", "content": "4"},
            ]
        },
        {"task": "sum"},
    ),
    ({"prompt": "a", "completion": "b"}, "completion", {"prompt": "a", "completion": "b"}, {}),
    (
        {"prompt": [HI], "completion": "hello", "x": None},
        "completion",
        {"prompt": [HI], "completion": [HELLO]},
        {"x": None},
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {},
    ),
    (
        {"chosen": [HI, HELLO], "rejected": [HI, {**HELLO, "content": "no"}], "margin": 2},
        "preference",
        {"prompt": [HI], "chosen": [HELLO], "rejected": [{**HELLO, "content": "no"}]},
        {"margin": 2},
    ),
    (
        {"prompt": "hi", "chosen": [HI, HELLO], "rejected": [HI, {**HELLO, "content": "no"}]},
        "preference",
        {"prompt": [HI], "chosen": [HELLO], "rejected": [{**HELLO, "content": "no"}]},
        {},
    ),
    (
        {"prompt": [HI], "chosen": [HI, HELLO], "rejected": "no"},
        "preference",
        {"prompt": [HI], "chosen": [HELLO], "rejected": [{**HELLO, "content": "no"}]},
        {},
    ),
    ({"prompt": "a", "completion": "b", "label": 1}, "label", {"prompt": "a", "completion": "b", "label": True}, {}),
    (
        {"prompt": [HI], "completion": "hello", "label": False},
        "label",
        {"prompt": [HI], "completion": [HELLO], "label": False},
        {},
    ),
]


@pytest.mark.parametrize(
    ("record", "format", "content", "columns"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_format(record: Any, format: str, content: Any, columns: Any, tmp_path: Path) -> None:
    row = read(tmp_path, record)
    assert (row.format, row.content, row.columns) == (format, content, columns)


def test_columns_are_renamed_and_a_guess_overruled(tmp_path: Path) -> None:
    record = {"question": "a", "answer": "b", "prompt": "old", "text": "other", "kind": "sum"}
    row = read(
        tmp_path, record, columns={"prompt": "question", "completion": "answer", "task": "kind"}, format="completion"
    )
    assert row.content == {"prompt": "a", "completion": "b"} and row.columns == {"task": "sum", "text": "other"}
    assert read(tmp_path, record, format="text").content == {"text": "other"}
    with pytest.raises(DataError, match="'qestion' that `columns` names is missing among 'question', 'answer'"):
        read(tmp_path, record, columns={"prompt": "qestion", "completion": "answer"})


@pytest.mark.parametrize("columns", [("question", "answer"), ("body",), ()])
def test_unknown_columns_are_listed(columns: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="fit no known format") as caught:
        detect(columns, "rows.csv")
    assert all(repr(column) in str(caught.value) for column in columns) and "columns: {prompt:" in str(caught.value)


def test_ambiguous_columns_are_listed() -> None:
    with pytest.raises(DataError, match="fit more than one format: text and messages; choose one, as in format: text"):
        detect(["text", "messages"], "rows.csv")
    for format, needed in NEEDED.items():
        assert detect(needed, "rows.csv") == format


def test_a_setting_that_is_no_setting_is_refused() -> None:
    for settings in ({"path": "a", "formt": "text"}, {"path": "a", "format": "texts"}, {"path": "a", "test_share": 1}):
        with pytest.raises(Exception, match="settings of file"):
            Source.parse({"file": settings})
    with pytest.raises(ValidationError):
        type(Source.parse("a.jsonl")).model_validate({"path": "a", "limit": 0})


def message(**changes: Any) -> dict[str, Any]:
    return {"messages": [HI, {**HELLO, **changes}]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": "hi"}, "messages is text, not a list"),
        ({"messages": [HI]}, "messages has no assistant turn"),
        ({"messages": [HI, "x"]}, r"messages\[1\] is text, not an object"),
        (message(role="bot"), r"messages\[1\] has the role 'bot', which is none of assistant, developer"),
        (message(role=None), r"messages\[1\] has the role None"),
        (message(content=""), r"messages\[1\].content is empty"),
        (message(content=None), r"messages\[1\].content is null, not text"),
        (message(content=[{"type": "image"}]), r"messages\[1\].content is a list, not text"),
        (message(weight=-1), r"messages\[1\].weight is -1, not a number of 0 or more"),
        (message(weight=True), "weight is True"),
        (message(spans=[{"start": 2, "end": 6, "weight": 0}]), "reaches from 2 to 6 in a content of 5 characters"),
        (message(spans=[{"start": 2, "end": 2, "weight": 0}]), "reaches from 2 to 2"),
        (message(spans=[{"start": 0, "weight": 0}]), r"spans\[0\] is not of the form"),
        ({**message(), "tools": "calculator"}, "tools is text"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, r"conversations\[0\] is from 'alien'"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "conversations has no assistant turn"),
        ({"instruction": "", "output": "x"}, "instruction is empty"),
        ({"instruction": "a", "output": 3}, "output is a number, not text"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, r"history\[0\] is not a pair"),
        ({"prompt": " ", "completion": "x"}, "prompt is empty"),
        ({"prompt": "a", "completion": [HELLO]}, "completion is a list, not text"),
        ({"prompt": [HI], "completion": []}, "completion is empty"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' of format preference is missing"),
        ({"chosen": [HELLO], "rejected": [HELLO]}, "share no beginning"),
        ({"prompt": "x", "chosen": [HI, HELLO], "rejected": [HI, HELLO]}, "prompt is not the last message"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label is 'good', not true or false"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label is 2, not true or false"),
        ({"prompt": "a", "completion": "b", "label": None}, "label is None, not true or false"),
        ({"text": 3}, "text is a number, not text"),
    ],
)
def test_bad_rows_say_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadValue, match=reason):
        shape(detect(record, "rows.jsonl"), record)


def test_what_is_right_is_kept_as_it_is() -> None:
    for record in (message(weight=0), message(content="", tool_calls=[{"function": {}}]), message(weight=None)):
        shaped = shape("messages", record)
        assert (shaped.content is None) == (None not in record["messages"][1].values())
    assert shape("messages", message(weight=None)).content == message()


def test_classes_tags_and_pairs() -> None:
    assert detect(["text", "class"], "f") == "class" and detect(["text", "label"], "f") == "text"
    assert detect(["words", "tags"], "f") == "tags" and detect(["anchor", "positive", "negative"], "f") == "pair"
    assert shape("class", {"text": "a", "class": 3}).content == {"text": "a", "class": "3"}
    assert shape("tags", {"words": ["a"], "tags": ["x"]}).content is None
    assert shape("pair", {"anchor": "a", "positive": "b", "negative": None}).content == {"anchor": "a", "positive": "b"}
    for format, record, reason in (
        ("class", {"text": "a", "class": None}, "class is null, not text"),
        ("tags", {"words": ["a", "b"], "tags": ["x"]}, "there are 2 words and 1 tags"),
        ("tags", {"words": ["a", ""], "tags": ["x", "y"]}, r"words\[1\] is empty"),
        ("pair", {"anchor": "a", "positive": " "}, "positive is empty"),
    ):
        with pytest.raises(BadValue, match=reason):
            shape(format, record)  # type: ignore[arg-type]
