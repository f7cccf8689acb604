"""Dynamic batch loading: the paper's update, with references that are given or measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from families import tiny
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.rows import Rows
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.mix.base import Sources
from temper.mix.dynamic_loading import DynamicLoading

LOSSES = [[3.0, 2.0, 1.0], [2.5, 1.0, 1.5], [0.5, 2.75, 1.25], [0.25, 0.5, 2.0]]
SIZES = (10, 20, 70)


def naive(references: list[float], weights: list[float], measured: list[list[float]]) -> list[float]:
    """Algorithm 1, line by line."""
    for losses in measured:
        delta = [max(loss - reference, 0) for loss, reference in zip(losses, references, strict=True)]
        alpha = [weight * math.exp(value) for weight, value in zip(weights, delta, strict=True)]
        weights = [value / sum(alpha) for value in alpha]
    return weights


def stepped(settings: DynamicLoading, losses: Iterator[list[float]], steps: int) -> list[list[float]]:
    mixing = settings.build(Sources(SIZES, lambda: np.array(next(losses))))
    seen = []
    for step in range(steps):
        mixing.before_step(Moment(step, step / steps))
        mixing.after_step(Moment(step, step / steps))
        seen.append(mixing.weights_S.tolist())
    return seen


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 1.0]])
def test_the_weights_are_the_papers_update(weights: list[float] | None) -> None:
    references = [1.0, 1.0, 1.25]
    given = {"references": references, "weights": weights, "every_steps": 2}
    seen = stepped(DynamicLoading.model_validate(given), iter(LOSSES), 8)
    start = [value / sum(weights or SIZES) for value in weights or SIZES]
    for step, got in enumerate(seen):
        assert got == pytest.approx(naive(references, start, LOSSES[: (step + 1) // 2]), rel=1e-12)
    assert seen[0] == pytest.approx(start) and seen[1] != pytest.approx(start)


def test_references_are_measured_before_the_first_step_and_kept() -> None:
    """Only what the stage makes worse is drawn more, and a resumed run aims at what it began with."""
    settings = DynamicLoading(every_steps=1)
    seen = stepped(settings, iter(LOSSES), 3)
    assert seen == [pytest.approx(naive(LOSSES[0], [0.1, 0.2, 0.7], LOSSES[1 : n + 2]), rel=1e-12) for n in range(3)]
    assert seen[0][2] > 0.7, "the only one that is worse than at first"

    measured = iter(LOSSES)
    whole = settings.build(Sources(SIZES, lambda: np.array(next(measured))))
    whole.before_step(Moment(0, 0.0))
    whole.after_step(Moment(0, 0.0))
    again = settings.build(Sources(SIZES, lambda: np.array(LOSSES[2])))
    again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for mixing in (whole, again):
        mixing.before_step(Moment(1, 0.5))
        mixing.after_step(Moment(1, 0.5))
    assert again.weights_S.tolist() == whole.weights_S.tolist() == pytest.approx(seen[1])


def test_a_huge_loss_overflows_nothing() -> None:
    seen = stepped(DynamicLoading(references=(0.0, 0.0, 0.0), every_steps=1), iter([[5000.0, 1.0, 4999.0]]), 1)
    assert seen[0] == pytest.approx([10 / (10 + 70 / math.e), 0, 70 / math.e / (10 + 70 / math.e)], rel=1e-9)


def letters(letter: str, num: int) -> Rows:
    records = [{"prompt": f"{letter}{number}", "completion": letter * 3} for number in range(num)]
    return Rows.from_list(records, "completion", letter, letter)


@pytest.mark.parametrize("behind", [0, 1])
def test_in_training_the_source_behind_is_drawn_more(tmp_path: Path, behind: int) -> None:
    """References that one source lies far above, and the other far below."""
    references = [1.0 if number == behind else 100.0 for number in range(2)]
    mix = {"dynamic_loading": {"references": references, "every_steps": 2, "num_validation": 3}}
    choices = {"tune": "full", "lr": 1e-5, "steps": 12, "batch_size": 4, "mix": mix}
    parts = [letters("a", 12), letters("b", 12)]
    torch.manual_seed(0)
    fitted = fit(tiny("llama"), parts, FitSettings.model_validate(choices), folder=tmp_path)
    report = fitted.details["mixture"]
    assert report[behind]["weight"] > 0.999 and report[behind]["drawn"] > 38 and report[1 - behind]["drawn"] > 3


def test_settings_that_do_not_fit_are_refused() -> None:
    sources = Sources((3, 4), lambda: np.zeros(2))
    with pytest.raises(
        SettingError, match=r"mix\.dynamic_loading\.references: .* are 1 references for 2 sources; give"
    ):
        DynamicLoading(references=(1.0,)).build(sources)
    with pytest.raises(SettingError, match="are 3 weights for 2 sources"):
        DynamicLoading(weights=(1.0, 1.0, 1.0)).build(sources)
    with pytest.raises(ValidationError, match="weight 0, which no factor raises"):
        DynamicLoading.model_validate({"weights": [0, 1]})
