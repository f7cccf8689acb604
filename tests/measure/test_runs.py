"""Numbers over several runs: Student's interval against SciPy, the front against a comparison of all pairs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from temper.measure.runs import mean_interval, student_quantile, student_within, unbeaten
from temper.measure.statistics import Interval


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 101])
def test_student_equals_scipy(freedom: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        # two finite sums of positive terms in double precision
        assert student_within(t, freedom) == pytest.approx(2 * stats.t.cdf(t, freedom) - 1, abs=1e-12)
    for level in (0.5, 0.95, 0.999):
        assert student_quantile(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8).filter(lambda values: max(values) - min(values) > 1e-3))
def test_interval_equals_scipy(values: list[float]) -> None:
    interval = mean_interval(values)
    assert isinstance(interval, Interval)
    error = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=error)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-7, abs=1e-7)
    assert interval.value == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_interval_covers_as_often_as_it_says() -> None:
    """Of 5 normal numbers; a normal quantile in Student's place covers 0.88."""
    import numpy as np

    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    covered = [
        interval.low <= 3.0 <= interval.high
        for row in samples
        if isinstance(interval := mean_interval(row.tolist()), Interval)
    ]
    # 4000 coins of 0.95 lie within 0.0114 with 99.9 %.
    assert abs(sum(covered) / len(covered) - 0.95) < 0.0114


def test_few_runs_and_equal_ones() -> None:
    assert mean_interval([0.3]) == 0.3
    assert mean_interval([0.1, 0.1, 0.1]) == Interval(0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="no run"):
        mean_interval([])


numbers = st.integers(0, 6).map(float)


@settings(max_examples=300)
@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_front_equals_a_comparison_of_all_pairs(points: list[tuple[float, float]]) -> None:
    def is_beaten(point: tuple[float, float]) -> bool:
        return any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points if other is not point
        )

    assert unbeaten(points) == [not is_beaten(point) for point in points]
    assert not points or any(unbeaten(points))
