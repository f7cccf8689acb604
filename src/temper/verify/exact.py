"""Exact match with the expected answer."""

from __future__ import annotations

from collections.abc import Sequence

from temper.core.errors import DataError
from temper.data.matching import Matching
from temper.measure.examples import Question
from temper.verify.base import Verifier


class Exact(Matching, Verifier, name="exact"):
    """Right is what equals the expected answer, after what does not count is taken off.

    Source: SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250, section 6 (exact match).
    """

    def scores(self, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        for question in questions:
            if not question.answer:
                origin = question.row.origin
                raise DataError(origin.file, origin.line, "has no expected answer", "add a completion")
        return [
            float(self.matches(question.answer, answer)) for question, answer in zip(questions, answers, strict=True)
        ]
