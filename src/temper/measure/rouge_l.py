"""ROUGE-L: how much of the expected text the model wrote, in its order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from temper.core.errors import DataError
from temper.measure.examples import Question
from temper.measure.generation import GenerationSuite

_WORDS = re.compile(r"[^\W_]+")


class RougeL(GenerationSuite, name="rouge_l"):
    """The longest common subsequence of the words that were expected and of those that were written, as an F measure.

        P = LCS(X, Y) / n,    R = LCS(X, Y) / m,    F = (1 + beta^2) R P / (R + beta^2 P)

    X are the m expected words and Y the n written ones; an example's score is F, and 0 where nothing was written. A
    word is a run of letters and digits, in lower case.

    Source: ROUGE: A Package for Automatic Evaluation of Summaries (C.-Y. Lin, Text Summarization Branches Out, 2004),
    section 3 (sentence level).
    Symbols: beta is `beta`; equal to Google's rouge_score without stemming, for beta = 1 and English. Deviation:
    letters of every script make words, where that package knows a to z.
    """

    beta: float = Field(1.0, gt=0, description="beta: how much more recall counts than precision; 1 for alike")

    @property
    def metric(self) -> str:
        return "ROUGE-L"

    def judge(self, questions: Sequence[Question], outputs: Sequence[str]) -> list[float]:
        return [self._score(question, output) for question, output in zip(questions, outputs, strict=True)]

    def _score(self, question: Question, output: str) -> float:
        expected, written = words_of(question.answer), words_of(output)
        if not expected:
            origin = question.row.origin
            fix = "add a completion, or take the row out"
            raise DataError(origin.file, origin.line, f"expects {question.answer!r}, which holds no word", fix)
        common = longest_common(expected, written)
        if common == 0:
            return 0.0
        precision, recall = common / len(written), common / len(expected)
        return (1 + self.beta**2) * recall * precision / (recall + self.beta**2 * precision)


def words_of(text: str) -> list[str]:
    """Return a text's words, in lower case."""
    return _WORDS.findall(text.lower())


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A column of the usual table is held in the bits of one number (H. Hyyro, Bit-parallel LCS-length computation
    revisited, 2004): bit i is 0 where the length grows at word i.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    column = full
    for word in other:
        matched = column & places.get(word, 0)
        column = ((column + matched) | (column - matched)) & full
    return len(one) - column.bit_count()
