"""The inverse square root against transformers' schedule and the paper's formula."""

from __future__ import annotations

import pytest
import torch
from transformers.optimization import get_inverse_sqrt_schedule

from temper.core.schedule import Moment, Schedule

STEPS = 400


def theirs(warmup: int, timescale: int | None) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_inverse_sqrt_schedule(optimizer, warmup, timescale)
    factors = []
    for _ in range(STEPS + 1):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize(("warmup", "timescale"), [(40, None), (40, 200), (100, 20), (0, 12)])
def test_it_is_that_of_transformers(warmup: int, timescale: int | None) -> None:
    share = None if timescale is None else timescale / STEPS
    schedule = Schedule.parse({"inverse_sqrt": {"warmup": warmup / STEPS, "timescale": share}})
    ours = [schedule.value(Moment(step, step / STEPS)) for step in range(STEPS + 1)]
    expected = theirs(warmup, timescale)
    assert ours[warmup:] == pytest.approx(expected[warmup:], rel=1e-12)
    # In the warm-up a step has the factor that theirs has one later: the first is not 0 here.
    assert ours[1:warmup] == pytest.approx(expected[2 : warmup + 1], rel=1e-12)


def test_by_default_it_is_the_papers_and_without_a_warm_up_it_still_falls() -> None:
    schedule = Schedule.parse({"inverse_sqrt": {"warmup": 0.1}})
    peak = 0.1**-0.5
    for progress in (0.1, 0.2, 0.4, 0.9, 1.0):
        lower = min(progress**-0.5, progress * 0.1**-1.5)
        assert schedule.value(Moment(50, progress)) == pytest.approx(lower / peak, rel=1e-12)
    bare = Schedule.parse({"inverse_sqrt": {"warmup": 0}})
    assert bare.value(Moment(0, 0.0)) == 1 and bare.value(Moment(50, 0.09)) == pytest.approx(0.5)
    floored = Schedule.parse({"inverse_sqrt": {"warmup": 0, "floor": 0.5}})
    assert floored.value(Moment(50, 0.09)) == pytest.approx(0.75)


def test_a_timescale_is_a_share() -> None:
    for wrong in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match="inverse_sqrt"):
            Schedule.parse({"inverse_sqrt": {"timescale": wrong}})
