"""Verifiers: their contract, and exact match by every setting."""

from __future__ import annotations

import pytest

from temper.core.errors import DataError
from temper.data.example import Origin, Row
from temper.measure.exact_match import ExactMatch
from temper.measure.examples import Question, to_question
from temper.verify.base import Verifier

VERIFIERS = {name: method.model_validate(dict(method.example)) for name, method in Verifier.methods().items()}


def ask(answer: str, prompt: str = "p") -> Question:
    return to_question(Row("completion", {"prompt": prompt, "completion": answer}, {}, Origin("rows", 3)))


@pytest.mark.parametrize("name", VERIFIERS)
def test_the_expected_answer_is_right_and_scores_lie_between_0_and_1(name: str) -> None:
    questions = [ask("four"), ask("7"), ask("x y")]
    scores = VERIFIERS[name].scores(questions, ["four", "8", ""])
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores) and scores[0] == 1
    assert VERIFIERS[name].are_right(questions, ["four", "8", ""]) == [score > 0.5 for score in scores]
    assert VERIFIERS[name].scores([], []) == []


@pytest.mark.parametrize(
    ("settings", "answer", "is_right"),
    [
        ({}, " four\n", True),
        ({"strip": False}, " four", False),
        ({}, "Four", False),
        ({"ignore_case": True}, "FOUR", True),
        ({}, "four.", False),
        ({"ignore_punctuation": True}, "four.", True),
        ({"extract": r"= (\w+)"}, "2 + 1 = three, no: 2 + 2 = four", True),
        ({"extract": r"= (\w+)"}, "four", False),
    ],
)
def test_exact_match_judges_as_the_suite_does(settings: dict[str, object], answer: str, is_right: bool) -> None:
    assert Verifier.parse({"exact": settings}).are_right([ask("four")], [answer]) == [is_right]
    suite = ExactMatch.model_validate({"source": "lab/copy", **settings})
    assert suite.judge([ask("four")], [answer]) == [is_right]


def test_a_question_without_an_answer_cannot_be_judged() -> None:
    row = Row("text", {"text": "some words"}, {}, Origin("rows", 3))
    with pytest.raises(DataError, match="rows:3: has no expected answer; add a completion"):
        Verifier.parse("exact").scores([to_question(row)], ["words"])
