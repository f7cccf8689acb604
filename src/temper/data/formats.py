"""Records to rows: the formats that data is written in, told apart by their columns and brought to few.

Decisions:
- The columns of a file's first record decide its format; a later record that lacks them is a bad row. What fits
  no format or more than one is an error that lists the columns and says how to choose.
- `sharegpt` (`conversations` of `from`/`value`) and `alpaca` (`instruction`, `input`, `output`, `system`,
  `history`) become `messages`. Alpaca's input follows its instruction after an empty line.
- A prompt of messages with an answer in plain text becomes messages throughout. Where `chosen` and `rejected`
  are whole conversations, what they share at the start is the prompt.
- `question` and `answer` are not guessed: joined as plain text they would run into each other.
- A `class` is text or a whole number, which is kept as text; a tag is text.
- A `label` may be true, false, 1 or 0, in CSV as text, and nothing else.
- A column of any other name survives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from temper.core.errors import DataError
from temper.data.example import Format

WrittenFormat = Literal[
    "text", "messages", "sharegpt", "alpaca", "completion", "preference", "label", "class", "tags", "pair"
]

NEEDED: dict[WrittenFormat, frozenset[str]] = {
    "text": frozenset({"text"}),
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "alpaca": frozenset({"instruction", "output"}),
    "completion": frozenset({"prompt", "completion"}),
    "preference": frozenset({"chosen", "rejected"}),
    "label": frozenset({"prompt", "completion", "label"}),
    "class": frozenset({"text", "class"}),
    "tags": frozenset({"words", "tags"}),
    "pair": frozenset({"anchor", "positive"}),
}
"""the columns that tell a format"""

CONTAINED: dict[WrittenFormat, WrittenFormat] = {"label": "completion", "class": "text"}
"""formats whose columns include another's: the wider one is meant"""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
TRUE, FALSE = (True, "1", "true", "True", "TRUE"), (False, "0", "false", "False", "FALSE")
LABELS: dict[Any, bool] = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}


class BadValue(Exception):
    """Why a record is no row of its format."""


class Shaped(NamedTuple):
    """What a record became."""

    format: Format
    content: dict[str, Any] | None
    """None where the record's own values are the content, unchanged"""
    used: Collection[str] = ()
    """the record's columns that went into `content`, where it is given"""


def detect(columns: Collection[str], file: str | Path) -> WrittenFormat:
    """Tell a file's format by its columns.

    Raises:
        DataError: they fit none, or more than one.
    """
    found = [format for format, needed in NEEDED.items() if needed <= set(columns)]
    for format, part in CONTAINED.items():
        if format in found:
            found.remove(part)
    if len(found) == 1:
        return found[0]
    seen = ", ".join(map(repr, columns))
    if found:
        reason = f"its columns ({seen}) fit more than one format: {' and '.join(found)}"
        raise DataError(file, None, reason, f"choose one, as in format: {found[0]}")
    raise DataError(
        file,
        None,
        f"its columns ({seen}) fit no known format",
        "say which of them is what, as in columns: {prompt: question, completion: answer}; a format is told by "
        + "; ".join(f"{' + '.join(sorted(needed))} ({format})" for format, needed in NEEDED.items()),
    )


def shape(format: WrittenFormat, record: Any) -> Shaped:
    """Check a record and bring it to one of our formats.

    Raises:
        BadValue: the record is none of its format.
    """
    if type(record) is not dict:
        raise BadValue(f"the row is {_kind(record)}, not an object")
    missing = NEEDED[format] - record.keys()
    if missing:
        columns = ", ".join(map(repr, record))
        raise BadValue(f"{' and '.join(map(repr, sorted(missing)))} of format {format} is missing among {columns}")
    return _SHAPES[format](record)


def _text(record: dict[str, Any]) -> Shaped:
    _plain(record["text"], "text")
    return Shaped("text", None)


def _messages(record: dict[str, Any]) -> Shaped:
    written = record["messages"]
    messages = _conversation(written, "messages")
    _tools(record)
    if messages is written:
        return Shaped("messages", None)
    return Shaped("messages", _with_tools({"messages": messages}, record), ("messages", "tools"))


def _sharegpt(record: dict[str, Any]) -> Shaped:
    turns = record["conversations"]
    if type(turns) is not list:
        raise BadValue(f"conversations is {_kind(turns)}, not a list")
    messages = []
    for number, turn in enumerate(turns):
        if type(turn) is not dict:
            raise BadValue(f"conversations[{number}] is {_kind(turn)}, not an object")
        if "from" not in turn:
            messages.append(turn)
            continue
        role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise BadValue(
                f"conversations[{number}] is from {turn['from']!r}, which is none of {', '.join(SHAREGPT_ROLES)}"
            )
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({"role": role, "content": turn.get("value"), **rest})
    messages = _system(record) + messages
    _tools(record)
    content = {"messages": _conversation(messages, "conversations")}
    return Shaped("messages", _with_tools(content, record), ("conversations", "system", "tools"))


def _alpaca(record: dict[str, Any]) -> Shaped:
    messages = _system(record)
    history = record.get("history") or []
    if type(history) is not list:
        raise BadValue(f"history is {_kind(history)}, not a list")
    for number, pair in enumerate(history):
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise BadValue(f"history[{number}] is not a pair of question and answer")
        messages.append({"role": "user", "content": _plain(pair[0], f"history[{number}][0]")})
        messages.append({"role": "assistant", "content": _plain(pair[1], f"history[{number}][1]")})
    question = _plain(record["instruction"], "instruction")
    if record.get("input") not in (None, ""):
        question += "\n\n" + _plain(record["input"], "input")
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _plain(record["output"], "output")})
    return Shaped("messages", {"messages": messages}, ("instruction", "input", "output", "system", "history"))


def _completion(record: dict[str, Any]) -> Shaped:
    _tools(record)
    return _answered(record, "completion", ("completion",))


def _label(record: dict[str, Any]) -> Shaped:
    written = record["label"]
    if not isinstance(written, bool | int | str) or written not in LABELS:
        raise BadValue(f"label is {written!r}, not true or false (where it is no such label, set format: completion)")
    _tools(record)
    shaped = _answered(record, "label", ("completion",))
    if type(written) is bool and shaped.content is None:
        return shaped
    content = shaped.content or _with_tools({"prompt": record["prompt"], "completion": record["completion"]}, record)
    return Shaped("label", {**content, "label": LABELS[written]}, ("prompt", "completion", "label", "tools"))


def _class(record: dict[str, Any]) -> Shaped:
    _plain(record["text"], "text")
    written = record["class"]
    if type(written) is int:
        return Shaped("class", {"text": record["text"], "class": str(written)}, ("text", "class"))
    _plain(written, "class")
    return Shaped("class", None)


def _tags(record: dict[str, Any]) -> Shaped:
    for key in ("words", "tags"):
        if type(record[key]) is not list:
            raise BadValue(f"{key} is {_kind(record[key])}, not a list")
        for number, value in enumerate(record[key]):
            _plain(value, f"{key}[{number}]")
    if not record["words"] or len(record["words"]) != len(record["tags"]):
        raise BadValue(f"there are {len(record['words'])} words and {len(record['tags'])} tags")
    return Shaped("tags", None)


def _pair(record: dict[str, Any]) -> Shaped:
    given = [key for key in ("anchor", "positive", "negative") if key != "negative" or record.get(key) is not None]
    for key in given:
        _plain(record[key], key)
    if len(given) == 2 and "negative" in record:
        return Shaped("pair", {key: record[key] for key in given}, ("anchor", "positive", "negative"))
    return Shaped("pair", None)


def _preference(record: dict[str, Any]) -> Shaped:
    _tools(record)
    chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
    if type(chosen) is list and type(rejected) is list and type(prompt) is not list:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        # Two equal conversations differ in nothing: the last message is the answer all the same.
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
        start = chosen[: max(shared, 0)]
        if not start:
            raise BadValue("chosen and rejected share no beginning that could be their prompt")
        last = start[-1].get("content") if type(start[-1]) is dict else None
        if prompt is not None and prompt != last:
            raise BadValue("prompt is not the last message that chosen and rejected share")
        record = {**record, "prompt": start, "chosen": chosen[shared:], "rejected": rejected[shared:]}
        shaped = _answered(record, "preference", ("chosen", "rejected"))
        content = shaped.content or {key: record[key] for key in ("prompt", "chosen", "rejected")}
        return Shaped("preference", _with_tools(content, record), ("prompt", "chosen", "rejected", "tools"))
    if "prompt" not in record:
        raise BadValue("'prompt' of format preference is missing")
    return _answered(record, "preference", ("chosen", "rejected"))


def _answered(record: dict[str, Any], format: Format, answers: tuple[str, ...]) -> Shaped:
    """Check a prompt and its answers: all plain text, or all messages."""
    prompt = record["prompt"]
    if type(prompt) is str:
        for key in ("prompt", *answers):
            _plain(record[key], key)
        return Shaped(format, None)
    content = {"prompt": _conversation(prompt, "prompt", is_answered=False)}
    for key in answers:
        answer = record[key]
        if type(answer) is str:
            answer = [{"role": "assistant", "content": answer}]
        elif type(answer) is list and answer[: len(prompt)] == prompt:
            answer = answer[len(prompt) :]
        content[key] = _conversation(answer, key)
    if all(content[key] is record[key] for key in content):
        return Shaped(format, None)
    return Shaped(format, _with_tools(content, record), ("prompt", *answers, "tools"))


def _conversation(messages: Any, where: str, is_answered: bool = True) -> list[dict[str, Any]]:
    """Check messages; return them as they are, or without keys that hold None (which Parquet fills in)."""
    if type(messages) is not list:
        raise BadValue(f"{where} is {_kind(messages)}, not a list of messages")
    if not messages:
        raise BadValue(f"{where} is empty")
    has_answer = has_none = False
    for number, message in enumerate(messages):
        if type(message) is not dict:
            raise BadValue(f"{where}[{number}] is {_kind(message)}, not an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise BadValue(f"{where}[{number}] has the role {role!r}, which is none of {', '.join(sorted(ROLES))}")
        if not (content is None or content == "") or not message.get("tool_calls"):
            _plain(content, f"{where}[{number}].content")
        has_answer |= role == "assistant"
        if len(message) > 2:
            has_none |= None in message.values()
            _weights(message, f"{where}[{number}]")
    if is_answered and not has_answer:
        raise BadValue(f"{where} has no assistant turn")
    if not has_none:
        return messages
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _weights(message: Mapping[str, Any], where: str) -> None:
    if message.get("weight") is not None:
        _weight(message["weight"], f"{where}.weight")
    spans = message.get("spans")
    if spans is None:
        return
    if type(spans) is not list:
        raise BadValue(f"{where}.spans is {_kind(spans)}, not a list")
    length = len(message.get("content") or "")
    for number, span in enumerate(spans):
        name = f"{where}.spans[{number}]"
        if type(span) is not dict or span.keys() != {"start", "end", "weight"}:
            raise BadValue(f"{name} is not of the form {{start, end, weight}}")
        _weight(span["weight"], f"{name}.weight")
        start, end = span["start"], span["end"]
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
            raise BadValue(f"{name} reaches from {start!r} to {end!r} in a content of {length} characters")


def _weight(value: Any, where: str) -> None:
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise BadValue(f"{where} is {value!r}, not a number of 0 or more")


def _plain(value: Any, where: str) -> str:
    if type(value) is not str:
        raise BadValue(f"{where} is {_kind(value)}, not text")
    if not value or value.isspace():
        raise BadValue(f"{where} is empty")
    return value


def _system(record: dict[str, Any]) -> list[dict[str, Any]]:
    system = record.get("system")
    if system is None or system == "":
        return []
    return [{"role": "system", "content": _plain(system, "system")}]


def _tools(record: dict[str, Any]) -> None:
    tools = record.get("tools")
    if tools is not None and (type(tools) is not list or not all(type(tool) is dict for tool in tools)):
        raise BadValue(f"tools is {_kind(tools)}, not a list of objects")


def _with_tools(content: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    return {**content, "tools": record["tools"]} if record.get("tools") is not None else content


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


_SHAPES = {
    "text": _text,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "preference": _preference,
    "label": _label,
    "class": _class,
    "tags": _tags,
    "pair": _pair,
}
