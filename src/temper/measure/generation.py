"""Suites that let the model write, and judge what it wrote.

Decisions:
- Greedy by default, through our own loop: a checkpoint's generation settings never change a measurement.
- Behind worked examples of plain text, an answer ends at the blank line that parts them: a model that goes on with
  a next example of its own has answered. Everywhere else only the model's end token and `until` end an answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import Field

from temper.core.errors import DataError
from temper.data.example import Row
from temper.data.example import Sequence as Tokens
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject, Unit
from temper.measure.examples import SEPARATOR, PromptSuite, Question
from temper.models.generate import generate, stop_tokens
from temper.models.model import Model
from temper.signals.likelihood import example_logprobs


class GenerationSuite(PromptSuite):
    """Questions that the model answers in writing."""

    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of an answer at most; by default twice the longest expected answer, and 8 more"
    )
    until: tuple[str, ...] = Field((), description="texts that end an answer; it is cut before the first of them")
    temperature: float = Field(0.0, ge=0, description="0 writes the likeliest token, above 0 samples by the seed")

    @property
    @abstractmethod
    def metric(self) -> str:
        """What the number is called."""

    @abstractmethod
    def judge(self, questions: Sequence[Question], outputs: Sequence[str]) -> list[float] | list[bool]:
        """Score each answer: with numbers, or right or wrong."""

    def kind(self) -> tuple[Unit, bool]:
        """Return the unit of the scores, and whether higher is better."""
        return "share", True

    def expected(self, question: Question) -> str:
        """Return the expected answer as a reader sees it."""
        return question.answer

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        rows = self.scored_rows(cache, seed)
        room = self.max_new_tokens or self._room(subject.model, rows)
        asked = [self.ask(subject.model, row, subject.shots, room) for row in rows]
        kept = [pair for pair in asked if pair is not None]
        if not kept:
            raise DataError(self.source.label, None, "holds no row that can be asked", "raise max_length")
        prompts = [tokens for _, tokens in kept]
        written = generate(subject.model, prompts, room, temperature=self.temperature, seed=seed)
        questions = [self.question(question.row) for question, _ in kept]
        ends = [*self.until, *([SEPARATOR] if subject.shots and not questions[0].is_conversation else [])]
        outputs = [_cut(subject.model.tokenizer.decode(tokens, skip_special_tokens=True), ends) for tokens in written]
        judged = self.judge(questions, outputs)
        is_right_or_wrong = all(isinstance(score, bool) for score in judged)
        unit, higher_is_better = self.kind()
        return Score(
            metric=self.metric,
            higher_is_better=higher_is_better,
            scores=tuple(float(score) for score in judged),
            correct=tuple(bool(score) for score in judged) if is_right_or_wrong else None,
            confidences=_confidences(subject.model, prompts, written, room) if subject.asks_confidences else None,
            unit=unit,
            samples=tuple(
                Sample(question.text, self.expected(question), output, float(score))
                for question, output, score in islice(zip(questions, outputs, judged, strict=True), NUM_SAMPLES)
            ),
            num_left_out=len(rows) - len(kept) + self.num_unread(cache),
        )

    def _room(self, model: Model, rows: Sequence[Row]) -> int:
        answers = [self.expected(self.question(row)) for row in rows]
        longest = max(len(tokens) for tokens in model.tokenizer(answers, add_special_tokens=False)["input_ids"])
        return 2 * longest + 8


def _confidences(
    model: Model, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], room: int
) -> tuple[float, ...]:
    """Return the probability of each answer: the product of its tokens', and of the end where it ended."""
    examples = []
    for prompt, answer in zip(prompts, written, strict=True):
        end = stop_tokens(model)[:1] if len(answer) < room else []
        tokens_T = np.array([*prompt, *answer, *end], np.int32)
        examples.append([Tokens(tokens_T, (np.arange(len(tokens_T)) >= len(prompt)).astype(np.float32))])
    return tuple(float(np.exp(own.sum())) for own in example_logprobs(model, examples))


def _cut(text: str, ends: Sequence[str]) -> str:
    """Cut a text before the first of `ends` that stands in it."""
    return text[: min((place for end in ends if (place := text.find(end)) >= 0), default=len(text))]
