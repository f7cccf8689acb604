"""Schedules at the points that define them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper.core.schedule import Moment, Schedule


def at(written: object, progress: float, step: int = 50) -> float:
    return Schedule.parse(written).value(Moment(step, progress))


def written_as(name: str, **settings: float) -> dict[str, dict[str, float]]:
    """A schedule with those settings that count for it."""
    idle = Schedule.parse(name).idle()
    return {name: {key: value for key, value in settings.items() if key not in idle}}


@pytest.mark.parametrize("name", sorted(Schedule.methods()))
def test_warm_up_rises_to_the_peak_and_what_follows_stays_in_bounds(name: str) -> None:
    written = written_as(name, warmup=0.1, floor=0.05)
    values = [at(written, step / 1000, step) for step in range(1000)]
    assert 0 < values[0] < 0.05 and max(values) == 1.0
    assert all(a <= b for a, b in itertools.pairwise(values[:101]))
    assert all(a >= b for a, b in itertools.pairwise(values[100:]))
    assert min(values[100:]) >= 0.05


def test_the_shapes_are_those_of_their_names() -> None:
    assert at({"constant": {"warmup": 0}}, 0.99) == 1
    assert at({"linear": {"warmup": 0}}, 0.25) == 0.75
    assert at({"linear": {"warmup": 0.5}}, 0.75) == 0.5
    assert at({"cosine": {"warmup": 0}}, 0.5) == pytest.approx(0.5)
    assert at({"cosine": {"warmup": 0, "floor": 0.2}}, 1.0) == pytest.approx(0.2)
    assert at({"cosine": {"warmup": 0}}, 0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert at({"wsd": {"warmup": 0, "decay_share": 0.5}}, 0.5) == 1
    assert at({"wsd": {"warmup": 0, "decay_share": 0.5}}, 0.75) == 0.5


@given(st.sampled_from(sorted(Schedule.methods())), st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 1))
def test_a_factor_is_a_factor(name: str, progress: float, warmup: float, floor: float) -> None:
    value = at(written_as(name, warmup=warmup, floor=floor), progress)
    assert 0 <= value <= 1 + 1e-12


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert at({"linear": {"warmup": 0}}, 0.0, 0) == 1
