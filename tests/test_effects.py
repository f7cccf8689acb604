"""Studies of effects: the interval, the verdicts, and that what is committed is what was measured."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from effects.running import DOCS, kept, render, studies, study_named
from effects.study import SEEDS, Contrast, Difference, Study, judge, paired_difference
from temper.pipeline.catalogue import catalogue

NUMBERS = st.lists(st.floats(-100, 100), min_size=10, max_size=10)


@given(NUMBERS)
def test_interval_is_that_of_the_paired_t_test(values: list[float]) -> None:
    of, against = values[:5], values[5:]
    found = paired_difference(of, against)
    reference = stats.ttest_rel(of, against).confidence_interval(0.95)
    if max(values) - min(values) > 1e-3:
        assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-6, abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 seeds"):
        paired_difference([1.0], [2.0])


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (1, 2, "above", "shown"),
        (-1, 2, "above", "not shown"),
        (-2, -1, "above", "contradicted"),
        (-2, -1, "below", "shown"),
        (1, 2, "below", "contradicted"),
        (-1, 1, "none", "shown"),
        (1, 2, "none", "contradicted"),
    ],
)
def test_verdicts(low: float, high: float, expected: Any, verdict: str) -> None:
    assert judge(Difference((low + high) / 2, low, high), expected) == verdict


def test_a_study_without_a_negative_control_is_refused() -> None:
    with pytest.raises(ValueError, match="negative control"):
        Study("claim", "unit", lambda bench: {}, (Contrast("c", "a", "b", "above"),))


@pytest.mark.parametrize("name", studies())
def test_every_study_has_its_numbers(name: str) -> None:
    study = study_named(name)
    [found] = [each for each in kept() if each["method"] == name]
    assert found["claim"] == study.claim
    assert found["finding"] == study.finding
    assert found["also"] == list(study.also)
    assert all(len(values) >= SEEDS for values in found["arms"].values())
    for contrast, each in zip(study.contrasts, found["contrasts"], strict=True):
        assert (contrast.name, contrast.expected) == (each["name"], each["expected"])
        difference = paired_difference(found["arms"][contrast.of], found["arms"][contrast.against])
        assert (each["mean"], each["low"], each["high"]) == pytest.approx(
            (difference.mean, difference.low, difference.high)
        )
        assert each["verdict"] == judge(difference, contrast.expected)


def test_studies_are_about_methods_that_there_are() -> None:
    known = {f"{axis.name}/{page.name}" for axis in catalogue() for page in axis.methods}
    assert {method for found in kept() for method in (found["method"], *found["also"])} <= known


def test_no_result_is_left_of_a_study_that_has_gone() -> None:
    assert {found["method"] for found in kept()} == set(studies())


def test_the_page_is_written_from_the_results() -> None:
    assert (DOCS / "effects.md").read_text(encoding="utf-8") == render(kept())
