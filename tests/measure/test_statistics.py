"""Intervals cover what they say they cover, and a control with a lower level covers as much less."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from temper.measure.statistics import (
    Interval,
    _Arm,
    _bootstrap,
    _draw,
    bonett_price,
    count_flips,
    difference_interval,
    value_interval,
    value_of,
    verdict,
    wilson,
)

NUM_TRIALS = 400
# Binomial standard error at 400 trials: 1.1 points at 0.95, 2.5 at 0.5. The bounds are 3 of them, and below 0.95
# the two more points that a bootstrap of 60 skewed examples may fall short.
BOUNDS = {0.95: (0.90, 0.985), 0.5: (0.42, 0.58)}


def _coverage(trial: Callable[[int], tuple[Interval, float]]) -> float:
    covered = [interval.low <= truth <= interval.high for interval, truth in map(trial, range(NUM_TRIALS))]
    return float(np.mean(covered))


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("transform", ["mean", "exp"])
def test_value_covers(level: float, transform: str) -> None:
    def trial(seed: int) -> tuple[Interval, float]:
        rng = np.random.default_rng(seed)
        weights = rng.integers(5, 200, 60).astype(float)
        scores = rng.gamma(2.0, 0.5, 60)
        interval = value_interval(scores, weights, transform, level=level, num_resamples=400, seed=seed)  # type: ignore[arg-type]
        return interval, 1.0 if transform == "mean" else math.e

    low, high = BOUNDS[level]
    assert low <= _coverage(trial) <= high


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("transform", ["mean", "exp"])
def test_difference_covers(level: float, transform: str) -> None:
    def trial(seed: int) -> tuple[Interval, float]:
        rng = np.random.default_rng(seed)
        weights = rng.integers(5, 50, 60).astype(float)
        before = rng.gamma(2.0, 0.5, 60)
        now = before + rng.normal(0.3, 0.2, 60)
        interval = difference_interval(
            now, before, weights, weights, transform, level=level, num_resamples=400, seed=seed  # type: ignore[arg-type]
        )  # fmt: skip
        return interval, 0.3 if transform == "mean" else math.exp(1.3) - math.e

    low, high = BOUNDS[level]
    assert low <= _coverage(trial) <= high


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("num", [40, 200])
def test_share_covers_near_the_end_of_the_scale(level: float, num: int) -> None:
    # The coverage of one share jumps with it, since counts are whole: what is near the level is the mean over shares.
    def trial(seed: int) -> tuple[Interval, float]:
        rng = np.random.default_rng(seed)
        share = rng.uniform(0.9, 1.0)
        return wilson(int(rng.binomial(num, share)), num, level), share

    low, high = BOUNDS[level]
    assert low <= _coverage(trial) <= high


def test_share_difference_covers() -> None:
    def trial(seed: int) -> tuple[Interval, float]:
        rng = np.random.default_rng(seed)
        before = rng.random(60) < 0.95
        now = np.where(rng.random(60) < 0.1, False, before)
        return difference_interval(now.astype(float), before.astype(float)), -0.095

    assert 0.92 <= _coverage(trial) <= 0.995


def test_wilson_by_hand() -> None:
    # 10 of 10: the lower end is n / (n + z^2) with z = 1.959964.
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 3.841459), abs=1e-6)
    assert (wilson(10, 10).high, wilson(0, 10).low) == (1.0, 0.0)
    # 1 of 4, from the formula: centre (1 + 1.920729) / 7.841459, half 1.959964 / 7.841459 sqrt(0.75 + 0.960365).
    assert wilson(1, 4).low == pytest.approx(0.3724727 - 0.3268845, abs=1e-6)


def test_all_right_is_not_certain_but_a_bootstrap_says_so() -> None:
    scores = [1.0] * 200
    assert value_interval(scores).low == pytest.approx(200 / 203.841459, abs=1e-6)
    collapsed = _bootstrap([_Arm.of(scores, None, "mean")], np.array([1.0]), 0.95, 200, 0)
    assert (collapsed.low, collapsed.high) == (1.0, 1.0)


def test_bonett_price_by_hand() -> None:
    # 3 of 8 gained, none lost: shares 4/10 and 1/10, half width z sqrt((0.5 - 0.09) / 10).
    now, before = [True] * 3 + [False] * 5, [False] * 8
    interval = bonett_price(now, before)
    assert interval.value == 3 / 8
    assert interval.low == pytest.approx(0.3 - 1.959964 * math.sqrt(0.041), abs=1e-6)
    assert interval.high == pytest.approx(0.3 + 1.959964 * math.sqrt(0.041), abs=1e-6)
    turned = bonett_price(before, now)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-interval.value, -interval.high, -interval.low))
    unchanged = bonett_price(before, before)
    assert unchanged.low < 0 < unchanged.high
    every = bonett_price([True] * 200, [False] * 200)
    assert every.low <= every.value <= every.high == 1.0


def test_pairing_is_what_narrows() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 1, 200)
    before = 2 + hardness + rng.normal(0, 0.1, 200)
    now = 2.1 + hardness + rng.normal(0, 0.1, 200)
    paired = difference_interval(now, before)
    apart = math.hypot(*(end.high - end.low for end in (value_interval(now), value_interval(before))))
    assert paired.high - paired.low < 0.2 * apart
    shuffled = difference_interval(rng.permutation(now), before)
    assert shuffled.high - shuffled.low == pytest.approx(apart, rel=0.15)
    assert verdict(paired, higher_is_better=True) == "better" and verdict(shuffled, True) == "same"


def test_bootstrap_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    scores, weights = rng.gamma(1.0, 1.0, 12), rng.integers(1, 9, 12).astype(float)
    counts = _draw(np.random.default_rng(7), 300, 12)

    def estimate(drawn: list[int]) -> tuple[float, float]:
        total = sum(weights[index] for index in drawn)
        mean = sum(weights[index] * scores[index] for index in drawn) / total
        return mean, math.sqrt(sum((weights[index] * (scores[index] - mean) / total) ** 2 for index in drawn))

    value, error = estimate(list(range(12)))
    ratios = []
    for counted in counts:
        mean, own = estimate([index for index, count in enumerate(counted) for _ in range(int(count))])
        ratios.append((mean - value) / own)
    high, low = (value - quantile * error for quantile in np.quantile(ratios, [0.025, 0.975]))
    interval = value_interval(scores, weights, num_resamples=300, seed=7)
    assert (interval.value, interval.low, interval.high) == pytest.approx((value, low, high), rel=1e-9)


def test_a_paired_bootstrap_of_perplexities_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(4)
    now, before = rng.gamma(1.0, 1.0, (2, 10))
    weights = rng.integers(1, 9, 10).astype(float)
    counts = _draw(np.random.default_rng(5), 300, 10)

    def estimate(drawn: list[int]) -> tuple[float, float]:
        total = sum(weights[index] for index in drawn)
        means = [sum(weights[index] * scores[index] for index in drawn) / total for scores in (now, before)]
        values = [math.exp(mean) for mean in means]
        influences = [
            weights[index] / total * (values[0] * (now[index] - means[0]) - values[1] * (before[index] - means[1]))
            for index in drawn
        ]
        return values[0] - values[1], math.sqrt(sum(influence**2 for influence in influences))

    value, error = estimate(list(range(10)))
    drawn = [[index for index, count in enumerate(counted) for _ in range(int(count))] for counted in counts]
    ratios = [(own - value) / own_error for own, own_error in map(estimate, drawn)]
    high, low = (value - quantile * error for quantile in np.quantile(ratios, [0.025, 0.975]))
    interval = difference_interval(now, before, weights, weights, "exp", num_resamples=300, seed=5)
    assert (interval.value, interval.low, interval.high) == pytest.approx((value, low, high), rel=1e-9)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=50)
    whole = value_interval(scores, num_resamples=100)
    monkeypatch.setattr("temper.measure.statistics.MAX_COUNTS", 50 * 7)
    assert value_interval(scores, num_resamples=100) == whole


def test_few_distinct_values_fall_back_to_percentiles() -> None:
    scores = [0.5] + [0.0] * 99
    interval = value_interval(scores)
    assert interval.value == 0.005 and interval.low == 0.0 and 0.01 <= interval.high <= 0.03


def test_equal_scores_are_a_point() -> None:
    assert value_interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.25, 0.25)
    zeros = difference_interval([0.3, 0.7], [0.3, 0.7])
    assert (zeros.low, zeros.high) == (0.0, 0.0) and verdict(zeros, False) == "same"


def test_value_is_the_weighted_mean_or_e_to_it() -> None:
    assert value_of([1.0, 2.0], [1, 3]) == 1.75
    assert value_of([1.0, 2.0], [1, 3], "exp") == pytest.approx(math.exp(1.75))
    assert value_interval([1.0, 2.0, 4.0], [1, 3, 1], "exp").value == pytest.approx(math.exp(11 / 5))


def test_flips_and_verdicts() -> None:
    flips = count_flips([True, False, False, True], [False, True, False, True])
    assert (flips.negative, flips.positive) == (1, 1)
    rise, fall = Interval(1.0, 0.5, 1.5), Interval(-1.0, -1.5, -0.5)
    assert [verdict(rise, True), verdict(rise, False), verdict(fall, True), verdict(fall, False)] == [
        "better",
        "worse",
        "worse",
        "better",
    ]


def test_unlike_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 examples cannot be paired with 2"):
        difference_interval([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="nothing to average"):
        value_of([])
