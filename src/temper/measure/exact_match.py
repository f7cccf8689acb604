"""Exact match: the share of questions to which the model writes just the expected answer."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from pydantic import Field, field_validator

from temper.core.errors import DataError
from temper.measure.examples import Question, row_values, shown
from temper.measure.generation import GenerationSuite


class ExactMatch(GenerationSuite, name="exact_match"):
    """The share of questions answered exactly right.

    Source: SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250, section 6 (exact match
    after normalising). Deviation: nothing but white space at both ends is forgiven unless a setting says so.
    """

    answer: str | None = Field(
        None, description="column of the expected answer; by default what the row wants written (its completion)"
    )
    extract: str | None = Field(
        None,
        description="regular expression that finds the answer in a longer text, in what the model wrote and in what is "
        "expected: its first group, or all of it; the last match counts, and no match is wrong",
    )
    strip: bool = Field(True, description="white space at both ends does not count")
    ignore_case: bool = Field(False, description="upper and lower case are the same")
    ignore_punctuation: bool = Field(False, description="ASCII punctuation does not count")

    @field_validator("extract")
    @classmethod
    def _compiles(cls, written: str | None) -> str | None:
        try:
            re.compile(written or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return written

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
        return [self._is_right(question, output) for question, output in zip(questions, outputs, strict=True)]

    def _is_right(self, question: Question, output: str) -> bool:
        expected = self.expected(question)
        written: str | None = output
        if self.extract is not None:
            expected = _find(self.extract, expected) or expected
            written = _find(self.extract, output)
        return written is not None and self._normalised(written) == self._normalised(expected)

    def _normalised(self, text: str) -> str:
        if self.ignore_punctuation:
            text = text.translate(str.maketrans("", "", string.punctuation))
        if self.ignore_case:
            text = text.casefold()
        return text.strip() if self.strip else text


def _find(pattern: str, text: str) -> str | None:
    """Return the first group (or all) of the last match."""
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    return found[-1][1] if found[-1].re.groups else found[-1][0]
