"""Is an answer right: the axis of verifiers, one interface for whatever can tell."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from temper.core.methods import Method
from temper.measure.examples import Question


class Verifier(Method, axis="verifier", packages=("temper.verify",)):
    """Is an answer right?"""

    @abstractmethod
    def scores(self, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        """Return how right each answer is, from 0 (wrong) to 1 (right).

        Raises:
            DataError: a question that cannot be judged, such as one without an expected answer.
        """

    def are_right(self, questions: Sequence[Question], answers: Sequence[str]) -> list[bool]:
        """Return which answers count as right: those that are more right than wrong."""
        return [score > 0.5 for score in self.scores(questions, answers)]
