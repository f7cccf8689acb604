"""Multiple choice: the share of questions whose right choice the model finds likeliest."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from temper.core.errors import DataError
from temper.data.encode import Encoder, RowError
from temper.data.example import Row, Sequence
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject
from temper.measure.examples import PromptSuite, Question, row_values, shown, to_question
from temper.models.generate import stop_tokens
from temper.models.model import Model
from temper.signals.likelihood import example_logprobs


class MultipleChoice(PromptSuite, name="multiple_choice"):
    """The share of questions whose right choice is the likeliest continuation of the prompt.

    Source: Language Models are Few-Shot Learners, arXiv:2005.14165, section 2.4 (choices compared by likelihood).

    A choice's likelihood is the sum of its tokens' log-probabilities after the prompt, or that sum over its UTF-8
    bytes or tokens, for choices of unlike length. What the chat template or the encoder puts behind a choice (an end
    token) does not count. The first of equally likely choices is the model's answer. Rows of `question`, `choices` and
    `answer` are read with the source's `columns: {text: question}`.
    """

    example: ClassVar[dict[str, Any]] = {**PromptSuite.example, "source": {"file": {"path": "rows.jsonl"}}}

    choices: str = Field("choices", description="column of the choices, a list")
    answer: str = Field(
        "answer",
        description="column of the right one: its index from 0, or its text; the completion where a row lacks it",
    )
    normalise: Literal["none", "bytes", "tokens"] = Field(
        "none", description="what a choice's log-probability is divided by"
    )

    def question(self, row: Row) -> Question:
        question = to_question(row)
        choices, right = self._choices(row)
        return Question(question.prompt, choices[right], row)

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        rows = self.scored_rows(cache, seed)
        asked = [(row, self._continuations(subject.model, row, subject)) for row in rows]
        kept = [(row, continuations) for row, continuations in asked if continuations]
        if not kept:
            raise DataError(self.source.label, None, "holds no row that can be asked", "raise max_length")
        logprobs = iter(example_logprobs(subject.model, [[choice] for _, choices in kept for choice in choices]))
        chosen, correct, confidences = [], [], []
        for row, continuations in kept:
            choices, right = self._choices(row)
            likelihoods = [
                float(own.sum()) / self._length(choice, len(own))
                for choice, own in zip(choices, islice(logprobs, len(continuations)), strict=True)
            ]
            best = int(np.argmax(likelihoods))
            chosen.append(choices[best])
            correct.append(best == right)
            confidences.append(float(1 / np.exp(np.array(likelihoods) - likelihoods[best]).sum()))
        questions = [self.question(row) for row, _ in kept[:NUM_SAMPLES]]
        return Score(
            metric="multiple choice",
            higher_is_better=True,
            scores=tuple(float(is_right) for is_right in correct),
            correct=tuple(correct),
            confidences=tuple(confidences) if subject.asks_confidences else None,
            samples=tuple(
                Sample(question.text, question.answer, output, float(is_right))
                for question, output, is_right in zip(questions, chosen, correct, strict=False)
            ),
            num_left_out=len(rows) - len(kept) + self.num_unread(cache),
        )

    def _choices(self, row: Row) -> tuple[list[str], int]:
        """Return the choices and the index of the right one."""
        values = row_values(row)
        written = values.get(self.choices)
        if not isinstance(written, list) or len(written) < 2:
            raise _row_error(row, f"{self.choices}: {written!r} is no list of two or more choices")
        choices = [shown(choice) for choice in written]
        if len(set(choices)) < len(choices) or not all(choices):
            raise _row_error(row, f"{self.choices}: {choices!r} holds a choice twice, or an empty one")
        return choices, _right(choices, values.get(self.answer, to_question(row).answer), self.answer, row)

    def _continuations(self, model: Model, row: Row, subject: Subject) -> list[Sequence]:
        """Return a sequence for each choice, supervised where the choice stands; none for a row left out."""
        choices, _ = self._choices(row)
        # What a template puts behind an answer is a few tokens.
        room = 8 + max(len(model.tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in choices)
        asked = self.ask(model, row, subject.shots, room)
        if asked is None:
            return []
        encoder = Encoder.of(model, self.max_length)
        ends = {*stop_tokens(model), *model.tokenizer.all_special_ids}
        try:
            encoded = [encoder.supervised(asked[0].to_row(choice)) for choice in choices]
        except RowError as error:
            self.refuse(row, str(error))
            return []
        return [_without_end(sequence, model.tokenizer, ends) for sequence in encoded]

    def _length(self, choice: str, num_tokens: int) -> int:
        return {"none": 1, "bytes": len(choice.encode()), "tokens": num_tokens}[self.normalise]


def _right(choices: list[str], written: Any, column: str, row: Row) -> int:
    """Return the index of the right choice; a text that is a choice is never read as an index."""
    if isinstance(written, str) and written in choices:
        return choices.index(written)
    if isinstance(written, str) and written.isdecimal():
        written = int(written)
    if isinstance(written, int) and not isinstance(written, bool) and 0 <= written < len(choices):
        return written
    raise _row_error(row, f"{column}: {written!r} is neither an index from 0 nor one of the {len(choices)} choices")


def _row_error(row: Row, reason: str) -> DataError:
    return DataError(row.origin.file, row.origin.line, reason, "mend the row, or name its columns: choices, answer")


def _without_end(sequence: Sequence, tokenizer: Any, ends: set[int]) -> Sequence:
    """Take the weight from the end tokens and white space that follow the choice."""
    weights_T = (sequence.weights_T != 0).astype(np.float32)
    for place in reversed(np.flatnonzero(weights_T)[1:]):
        token = int(sequence.tokens_T[place])
        if token not in ends and tokenizer.decode([token]).strip():
            break
        weights_T[place] = 0
    return Sequence(sequence.tokens_T, weights_T, sequence.role)
