"""Suites over a source's rows: which rows are scored, which are worked examples, how prompts are put together.

Decisions:
- Scored is a fixed seeded subset of a split, in the order of its rows.
- Worked examples come from the train split: a fixed random draw of `reserve` of its rows (a quarter of them at
  most) is kept for them, and a row with the same content is never scored, in any arm. One rule for sources with
  and without splits, and all arms score the same examples.
- Whatever a row's format, a question is a prompt (text or messages) and the answer that is expected to it. Worked
  examples precede a conversation as turns, after its system message; a text, parted by a blank line.
- A prompt with too many worked examples for the model loses the first of them, never an end of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from temper.core.errors import DataError
from temper.data.encode import Encoder, RowError
from temper.data.example import Format, Row
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split
from temper.measure.base import Suite
from temper.models.model import Model

SEPARATOR = "\n\n"
"""between worked examples, and before the prompt, where prompts are text"""
Prompt = str | list[dict[str, Any]]
Half = Literal["first", "second"]
_HALVES = 1
"""parts the order that halves a split from the order that chooses rows"""


class SourceSuite(Suite):
    """Rows of a source, scored."""

    example: ClassVar[dict[str, Any]] = {
        "source": {"lab": {"skill": "copy", "num": 16, "num_test": 8}},
        "examples": 4,
    }

    source: Source = Field(description="the data that is scored")
    split: Split = Field("test", description="which split of it; a source without splits has the same rows in both")
    examples: int | None = Field(200, ge=1, description="rows at most, a fixed random subset; null for all of them")
    half: Half | None = Field(
        None, description="first or second: only rows of that half of the split, so that one can choose by the other"
    )
    max_length: int = Field(2048, ge=2, description="longest example, in tokens; the model's own limit where lower")
    on_bad_rows: OnBadRows = Field("stop", description="what a row that cannot be scored does: stop, or be left out")

    @property
    def default_label(self) -> str:
        return self.source.label

    def sources(self) -> Sequence[Source]:
        return (self.source,)

    def rows(self, cache: Path, seed: int, excluded: Sequence[str] = ()) -> list[Row]:
        """Return the rows to score.

        Args:
            excluded: contents, as `Rows` holds them, that are not to be scored.

        Raises:
            DataError: no row is left.
        """
        rows, chosen = self._chosen(cache, seed, excluded)
        return rows.take(chosen)

    def contents(self, cache: Path, seed: int) -> list[str]:
        """Return the contents of the rows that are scored, as `Rows` holds them."""
        return _contents(*self._chosen(cache, seed))

    def _chosen(self, cache: Path, seed: int, excluded: Sequence[str] = ()) -> tuple[Rows, list[int]]:
        rows = self.source.open(self.split, cache, self.on_bad_rows)
        candidates = np.arange(len(rows)) if self.half is None else self._half(len(rows), seed)
        if excluded:
            is_excluded = pc.is_in(rows.table["content"], value_set=pa.array(excluded, pa.large_string()))
            candidates = candidates[~is_excluded.to_numpy().astype(bool)[candidates]]
        if not len(candidates):
            raise DataError(self.source.label, None, f"holds no {self.split} row to score", "name a source with rows")
        if self.examples is not None:
            candidates = np.sort(np.random.default_rng(seed).permutation(candidates)[: self.examples])
        return rows, candidates.tolist()

    def _half(self, num_rows: int, seed: int) -> NDArray[np.int64]:
        mixed = np.random.default_rng([seed, _HALVES]).permutation(num_rows)
        middle = num_rows // 2
        return np.sort(mixed[:middle] if self.half == "first" else mixed[middle:])

    def num_unread(self, cache: Path) -> int:
        """Return how many rows of the source could not be read and were put aside."""
        return len(self.source.open(self.split, cache, self.on_bad_rows).bad)

    def length_limit(self, model: Model) -> int:
        """Return the longest example in tokens that setting and model allow."""
        return min(self.max_length, model.num_positions)

    def refuse(self, row: Row, reason: str) -> None:
        """Stop at a row that cannot be scored, unless bad rows are to be left out."""
        if self.on_bad_rows == "stop":
            raise DataError(
                row.origin.file, row.origin.line, reason, "mend or remove the row, or set on_bad_rows: skip"
            )


def _contents(rows: Rows, chosen: Sequence[int]) -> list[str]:
    """Return the contents of some rows, as `Rows` holds them."""
    return [str(content) for content in rows.table["content"].take(pa.array(chosen, pa.int64())).to_pylist()]


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that is expected to it."""

    prompt: Prompt
    answer: str
    row: Row

    @property
    def is_conversation(self) -> bool:
        return not isinstance(self.prompt, str)

    @property
    def text(self) -> str:
        """The prompt as a reader sees it."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"{turn['role']}: {_content(turn)}" for turn in self.prompt)

    def after(self, shots: Sequence[Question]) -> Question:
        """Return the question behind worked examples."""
        if not shots:
            return self
        if isinstance(self.prompt, str):
            worked = [f"{shot.text}{shot.answer}" for shot in shots]
            return replace(self, prompt=SEPARATOR.join([*worked, self.prompt]))
        system = [turn for turn in self.prompt if turn["role"] == "system"][:1]
        turns = [turn for shot in shots for turn in [*shot.turns(), {"role": "assistant", "content": shot.answer}]]
        own = [turn for turn in self.prompt if turn not in system]
        return replace(self, prompt=[*system, *[turn for turn in turns if turn["role"] != "system"], *own])

    def turns(self) -> list[dict[str, Any]]:
        """Return the prompt as messages."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt

    def to_row(self, answer: str | None = None) -> Row:
        """Return a `completion` row with an answer, by default the expected one, for the encoder."""
        text = self.answer if answer is None else answer
        completion = [{"role": "assistant", "content": text}] if self.is_conversation else text
        tools = {"tools": self.row.content["tools"]} if self.row.content.get("tools") else {}
        return Row(
            "completion", {"prompt": self.prompt, "completion": completion, **tools}, self.row.columns, self.row.origin
        )


def to_question(row: Row) -> Question:
    """Take a row apart into prompt and answer; the answer is empty where the row holds none."""
    content = row.content
    if row.format == "text":
        return Question(content["text"], "", row)
    if row.format == "messages":
        turns = [dict(turn) for turn in content["messages"]]
        if turns and turns[-1]["role"] == "assistant":
            return Question(turns[:-1], _content(turns[-1]), row)
        return Question(turns, "", row)
    if "prompt" not in content:
        origin = row.origin
        fix = "measure it by label_accuracy, or name other data"
        raise DataError(origin.file, origin.line, f"a row of format {row.format} asks no question", fix)
    prompt = content["prompt"] if isinstance(content["prompt"], str) else [dict(turn) for turn in content["prompt"]]
    answer = content["chosen"] if row.format == "preference" else content.get("completion", "")
    return Question(prompt, answer if isinstance(answer, str) else _content(answer[-1]), row)


def _content(turn: Mapping[str, Any]) -> str:
    """Return what a turn says: its text, or the tools that it calls."""
    content = turn.get("content") or turn.get("tool_calls") or ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


class PromptSuite(SourceSuite):
    """Questions of a source, asked with or without worked examples before them."""

    formats: ClassVar[frozenset[Format]] = frozenset({"text", "messages", "completion", "preference", "label"})

    reserve: int = Field(
        8, ge=0, description="train rows kept for worked examples (a quarter of them at most); never scored"
    )

    def shots(self, count: int, cache: Path) -> Sequence[Row]:
        rows, reserved = self._reserved(cache)
        return rows.take(reserved[:count])

    def scored_rows(self, cache: Path, seed: int) -> list[Row]:
        """Return the rows to score, without those kept for worked examples."""
        return self.rows(cache, seed, self._reserved_contents(cache))

    def contents(self, cache: Path, seed: int) -> list[str]:
        return _contents(*self._chosen(cache, seed, self._reserved_contents(cache)))

    def _reserved_contents(self, cache: Path) -> list[str]:
        return _contents(*self._reserved(cache))

    def _reserved(self, cache: Path) -> tuple[Rows, list[int]]:
        rows = self.source.open("train", cache, self.on_bad_rows)
        num = min(self.reserve, len(rows) // 4)
        return rows, np.random.default_rng(0).permutation(len(rows))[:num].tolist()

    def question(self, row: Row) -> Question:
        """Take a row apart into prompt and expected answer."""
        return to_question(row)

    def ask(self, model: Model, row: Row, shots: Sequence[Row], room: int) -> tuple[Question, list[int]] | None:
        """Return the question behind as many worked examples as fit, and its tokens; None for a row left out.

        Args:
            room: tokens that an answer needs after the prompt.
        """
        question = self.question(row)
        limit = self.length_limit(model)
        encoder = Encoder.of(model, limit)
        worked = [self.question(shot) for shot in shots]
        while True:
            asked = question.after(worked)
            try:
                tokens = encoder.prompt(asked.to_row())
            except RowError as error:
                reason = str(error)
            else:
                if tokens and len(tokens) + room <= limit:
                    return asked, tokens
                reason = f"{len(tokens)} tokens of prompt and {room} of answer do not fit into 1 to {limit}"
            if not worked:
                self.refuse(row, reason)
                return None
            worked = worked[1:]


def row_values(row: Row) -> Mapping[str, Any]:
    """Return everything that a row holds, content and columns, by name."""
    return {**row.columns, **row.content}


def shown(value: object) -> str:
    """Return a value of a column as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
