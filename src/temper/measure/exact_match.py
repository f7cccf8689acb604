"""Exact match: the share of questions to which the model writes just the expected answer."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from temper.core.errors import DataError
from temper.data.matching import Matching
from temper.measure.examples import Question, row_values, shown
from temper.measure.generation import GenerationSuite


class ExactMatch(Matching, GenerationSuite, name="exact_match"):
    """The share of questions answered exactly right.

    Source: SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250, section 6 (exact match
    after normalising). Deviation: nothing but white space at both ends is forgiven unless a setting says so.
    """

    answer: str | None = Field(
        None, description="column of the expected answer; by default what the row wants written (its completion)"
    )

    @property
    def metric(self) -> str:
        return "exact match"

    def expected(self, question: Question) -> str:
        if self.answer is None:
            expected = question.answer
        else:
            values = row_values(question.row)
            if self.answer not in values:
                origin = question.row.origin
                raise DataError(origin.file, origin.line, f"has no column {self.answer!r}", "name one of its columns")
            expected = shown(values[self.answer])
        if not expected:
            origin = question.row.origin
            raise DataError(
                origin.file, origin.line, "has no expected answer", "add a completion, or name a column by `answer`"
            )
        return expected

    def judge(self, questions: Sequence[Question], outputs: Sequence[str]) -> list[bool]:
        return [
            self.matches(self.expected(question), output) for question, output in zip(questions, outputs, strict=True)
        ]
