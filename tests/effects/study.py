"""What a study is, and how its numbers are judged.

A study trains the same small models under some arms (with the method, without it, with its idea taken out), once for
each seed, and contrasts arms seed by seed. Every study has a negative control: a contrast in which nothing is expected,
by which one sees that the measure does not find what is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy import stats

from effects.bench import Bench

LEVEL = 0.95
SEEDS = 5

Expected = Literal["above", "below", "none"]
Verdict = Literal["shown", "not shown", "contradicted"]


@dataclass(frozen=True)
class Contrast:
    """One arm against another, seed by seed."""

    name: str
    """what it would show, as a statement"""
    of: str
    against: str
    expected: Expected
    """where `of` lies beside `against`; none: the negative control"""


@dataclass(frozen=True)
class Study:
    """A claim, and what is measured to see whether it holds here."""

    claim: str
    """what the paper says, in a sentence, with its arXiv id"""
    unit: str
    """of every arm's number, and whether more is better: `exact match in per cent, more is better`"""
    measure: Callable[[Bench], dict[str, float]]
    """every arm's number, for one seed"""
    contrasts: tuple[Contrast, ...]
    finding: str = ""
    """what was seen, in one or two sentences; for effects that did not show, why as far as it is known"""
    also: tuple[str, ...] = ()
    """further methods that the study is about, as axis/name"""

    def __post_init__(self) -> None:
        if not any(contrast.expected == "none" for contrast in self.contrasts):
            raise ValueError("a study needs a negative control: a contrast that expects none")


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its interval (Student's t over seeds)."""

    mean: float
    low: float
    high: float


def paired_difference(of: Sequence[float], against: Sequence[float], level: float = LEVEL) -> Difference:
    """Return the mean of `of - against` over seeds, with its interval.

    Raises:
        ValueError: fewer than two seeds, or not as many in both.
    """
    differences = [one - other for one, other in zip(of, against, strict=True)]
    count = len(differences)
    if count < 2:
        raise ValueError(f"{count} seeds: an interval needs two at least")
    mean = math.fsum(differences) / count
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (count - 1) / count)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * spread
    return Difference(mean, mean - half, mean + half)


def judge(difference: Difference, expected: Expected) -> Verdict:
    """Say whether an interval shows what was expected.

    A control is shown where its interval holds 0; any other contrast where its interval lies on the side expected.
    """
    if expected == "none":
        return "shown" if difference.low <= 0 <= difference.high else "contradicted"
    above, below = difference.low > 0, difference.high < 0
    if expected == "below":
        above, below = below, above
    return "shown" if above else "contradicted" if below else "not shown"


def result(method: str, study: Study, arms: dict[str, list[float]], seconds: float) -> dict[str, Any]:
    """Return what is kept of a study, as plain values."""
    contrasts = []
    for contrast in study.contrasts:
        difference = paired_difference(arms[contrast.of], arms[contrast.against])
        judged = {**asdict(difference), "verdict": judge(difference, contrast.expected)}
        contrasts.append({**asdict(contrast), **judged})
    return {
        "method": method,
        "also": list(study.also),
        "claim": study.claim,
        "finding": study.finding,
        "unit": study.unit,
        "arms": arms,
        "contrasts": contrasts,
        "seconds": round(seconds, 1),
    }
