"""Measures beside a single-task expert, against the published formulas written out."""

from __future__ import annotations

import numpy as np
import pytest

from temper.measure.base import Score
from temper.measure.expert import Expert, relative_performance, sample_efficiency
from temper.measure.report import SuiteReport, suite_report
from temper.measure.transfer import transfer_matrix


def row(**values: float) -> dict[str, SuiteReport]:
    return {
        name: suite_report(Score("m", True, (value, value), unit="share"), "gain", "s")
        for name, value in values.items()
    }


def losses(num: int, speed: float, end: float, seed: int) -> list[float]:
    """A falling and noisy curve."""
    generator = np.random.default_rng(seed)
    steps = np.arange(num)
    return list(end + 2 * np.exp(-speed * steps / num) + 0.05 * generator.random(num))


def naive_smooth(curve: list[float]) -> list[float]:
    """The mean of a window around each step, with the curve reflected at both ends, as the authors' code has it."""
    width = min(int(len(curve) * 0.2), 100)
    if width < 3:
        return curve

    def at(step: int) -> float:
        last = len(curve) - 1
        return curve[abs(step) if step <= last else 2 * last - step]

    before = width - width // 2
    return [sum(at(step + shift) for shift in range(-before, width - before)) / width for step in range(len(curve))]


@pytest.mark.parametrize(("num", "num_expert"), [(4, 9), (14, 14), (15, 40), (100, 61), (700, 650)])
def test_relative_performance_and_sample_efficiency_are_the_published_ones(num: int, num_expert: int) -> None:
    learner, expert = losses(num, 4.0, 0.4, seed=1), losses(num_expert, 2.0, 0.2, seed=2)
    likelihood = [float(np.exp(-loss)) for loss in learner]
    expert_likelihood = [float(np.exp(-loss)) for loss in expert]
    common = min(num, num_expert)
    wanted = sum(likelihood[:common]) / sum(expert_likelihood[:common])
    assert relative_performance(learner, expert) == pytest.approx(wanted, rel=1e-12)

    smooth, expert_smooth = naive_smooth(likelihood), naive_smooth(expert_likelihood)
    saturation, expert_saturation = max(smooth), max(expert_smooth)
    steps = 1 + next(step for step, value in enumerate(smooth) if value == saturation)
    expert_steps = 1 + next(step for step, value in enumerate(expert_smooth) if value == expert_saturation)
    wanted = saturation / expert_saturation * expert_steps / steps
    assert sample_efficiency(learner, expert) == pytest.approx(wanted, rel=1e-9)


def test_an_equal_learner_is_as_good_and_a_quicker_one_better() -> None:
    expert = losses(60, 2.0, 0.3, seed=3)
    assert relative_performance(expert, expert) == sample_efficiency(expert, expert) == 1
    quicker = [0.3] * 60
    better = relative_performance(quicker, expert)
    assert better is not None and better > 1
    assert relative_performance([], expert) is None and sample_efficiency(expert, []) is None


def test_intransigence_is_what_the_expert_reaches_beyond_the_learner() -> None:
    """I_k = a*_k - a_k,k, the mean over the tasks that have an expert."""
    rows = [
        ("base", row(a=0.1, b=0.2, c=0.1)),
        ("one", row(a=0.9, b=0.3, c=0.2)),
        ("two", row(a=0.7, b=0.6, c=0.3)),
        ("three", row(a=0.6, b=0.5, c=0.7)),
        ("only b", row(a=0.0, b=0.95, c=0.0)),
        ("only c", row(a=0.0, b=0.0, c=0.65)),
    ]
    learned, lineage = {"a": 1, "b": 2, "c": 3}, [0, 1, 2, 3]
    curve = losses(30, 2.0, 0.3, seed=4)
    experts = {"b": Expert(4, curve, curve), "c": Expert(5)}
    matrix = transfer_matrix(rows, learned, lineage, experts)
    assert matrix["intransigence"] == pytest.approx(((0.95 - 0.6) + (0.65 - 0.7)) / 2)
    # Losses are known beside one expert alone.
    assert matrix["relative_performance"] == matrix["sample_efficiency"] == 1
    without = transfer_matrix(rows, learned, lineage)
    assert without["intransigence"] is without["relative_performance"] is without["sample_efficiency"] is None
    untouched = {"intransigence", "relative_performance", "sample_efficiency"}
    assert {name: without[name] for name in without if name not in untouched} == {  # type: ignore[literal-required]
        name: matrix[name]
        for name in matrix
        if name not in untouched  # type: ignore[literal-required]
    }


def test_a_suite_that_was_not_learned_has_no_expert() -> None:
    rows: list[tuple[str, dict[str, SuiteReport]]] = [("base", row(a=0.1)), ("one", row(a=0.5)), ("two", row(a=0.6))]
    assert transfer_matrix(rows, None, [0, 1], {"a": Expert(2)})["intransigence"] is None
