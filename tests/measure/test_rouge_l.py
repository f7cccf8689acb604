"""ROUGE-L against Google's rouge_score, and against the table that defines it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from measuring import chain_model, write_rows
from temper.core.errors import DataError
from temper.data.example import Origin, Row
from temper.measure.base import Subject, Suite
from temper.measure.examples import to_question
from temper.measure.rouge_l import RougeL, longest_common, words_of

SOURCE = {"lab": {"skill": "copy"}}
TEXTS = st.lists(st.sampled_from(["the", "Cat", "sat", "on", "a-mat.", "it's", "2nd", "x_y", "  "]), max_size=12)


def score(expected: str, written: str, **chosen: object) -> float:
    suite = Suite.parse({"rouge_l": {"source": SOURCE, **chosen}})
    assert isinstance(suite, RougeL)
    row = Row("completion", {"prompt": "?", "completion": expected}, {}, Origin("rows.jsonl", 3))
    return float(suite.judge([to_question(row)], [written])[0])


@given(TEXTS, TEXTS)
def test_it_is_googles(expected: list[str], written: list[str]) -> None:
    one, other = " ".join(["word", *expected]), " ".join(written)
    found = RougeScorer(["rougeL"]).score(one, other)["rougeL"]
    assert score(one, other) == pytest.approx(found.fmeasure, abs=1e-12)
    if found.fmeasure:
        for beta in (0.5, 3.0):
            whole = (1 + beta**2) * found.precision * found.recall / (found.recall + beta**2 * found.precision)
            assert score(one, other, beta=beta) == pytest.approx(whole, abs=1e-12)


@given(st.lists(st.sampled_from("abcd"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=70))
def test_the_common_length_is_that_of_the_table(one: list[str], other: list[str]) -> None:
    """Longer than a machine word, too."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    assert longest_common(one, other) == table[-1][-1]


def test_words_of_every_script_count() -> None:
    assert words_of("Größe, ЖУК и 2 cats_dogs") == ["größe", "жук", "и", "2", "cats", "dogs"]
    assert score("жук и лев", "Жук, лев") == pytest.approx(2 * (1 * 2 / 3) / (1 + 2 / 3))


def test_an_expected_text_without_words_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3: expects '\.\.\.', which holds no word"):
        score("...", "something")


def test_a_model_is_measured_by_what_it_writes(tmp_path: Path) -> None:
    """After `=` comes `ok`, and the end."""
    rows = [
        {"prompt": "a=", "completion": "ok"},
        {"prompt": "b=", "completion": "not ok"},
        {"prompt": "c=", "completion": "no"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    suite = Suite.parse({"rouge_l": {"source": path, "reserve": 0}})
    found = suite.measure(Subject(chain_model(("=", "o", "k", "<eos>"))), tmp_path)
    assert found.scores == pytest.approx((1.0, 2 / 3, 0.0)) and found.value == pytest.approx(5 / 9)
    assert (found.metric, found.higher_is_better, found.unit, found.correct) == ("ROUGE-L", True, "share", None)
    assert found.samples[1].output == "ok" and found.samples[1].score == pytest.approx(2 / 3)
