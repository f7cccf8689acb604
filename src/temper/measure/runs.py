"""A number over several runs that differ by their seed, and which of several settings no other one beats.

Decisions:
- The interval of a mean over runs is Student's, x +- t(n - 1) s / sqrt(n): runs are few and the spread between them is
  not known. Equal numbers give the point itself; a single run has no interval.
- It tells how much the seed decides (the data's order, the start). How sure a suite's value is for the examples that it
  happens to hold is another interval, that of each run's own report.
- The distribution is computed exactly for whole degrees of freedom (Abramowitz and Stegun, Handbook of Mathematical
  Functions, 26.7.3 and 26.7.4) and inverted by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from temper.measure.statistics import LEVEL, Interval


def student_within(t: float, freedom: int) -> float:
    """Return the probability that Student's variable lies between -t and t.

    Args:
        t: at least 0.
        freedom: degrees of freedom, at least 1.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for step in range(freedom // 2):
        total += term
        below, above = (2 * step + 2, 2 * step + 3) if is_odd else (2 * step + 1, 2 * step + 2)
        term *= cosine * cosine * below / above
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """Return the t for which Student's variable lies between -t and t with this probability."""
    low, high = 0.0, 1.0
    while student_within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, freedom) < level else (low, middle)
    return high


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | float:
    """Return the mean of a number over runs with its interval; of a single run, the number alone.

    Raises:
        ValueError: no run.
    """
    if not values:
        raise ValueError("no run: nothing to average")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean
    if min(values) == max(values):
        return Interval(values[0], values[0], values[0])
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = student_quantile(len(values) - 1, level) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half)


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell of each point whether it lies on the Pareto front, less being better in both numbers.

    A point is off the front when another one is no worse in both and better in one; equal points share their place.
    """
    best = math.inf
    """the least second number among the points with a smaller first"""
    on_front = [False] * len(points)
    order = sorted(range(len(points)), key=lambda index: points[index])
    for place, index in enumerate(order):
        first, second = points[index]
        is_equal = place > 0 and points[order[place - 1]] == (first, second)
        on_front[index] = on_front[order[place - 1]] if is_equal else second < best
        best = min(best, second)
    return on_front
