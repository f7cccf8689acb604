"""Skill-It's weights are the paper's update, of losses that are the model's own on rows that it never trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from families import tiny
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.rows import Rows
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.mix.base import Sources
from temper.mix.skill_it import SkillIt

GRAPH = ((1.0, 0.5, 0.0), (0.0, 1.0, 0.25), (0.0, 0.0, 0.0))
LOSSES = np.array([[3.0, 2.0, 1.0], [2.5, 1.0, 1.5], [0.5, 0.75, 1.25], [0.25, 0.5, 2.0]])


def naive(eta: float, window: int, upto: int) -> list[float]:
    """p^i ~ exp(eta sum_tau sum_j A_ij L_j(f_tau)) over the last `window` of `upto` rounds, as it is written."""
    raw = []
    for i in range(3):
        exponent = 0.0
        for tau in range(max(0, upto - window), upto):
            for j in range(3):
                exponent += GRAPH[i][j] * LOSSES[tau][j]
        raw.append(np.exp(eta * exponent))
    return [value / sum(raw) for value in raw]


@pytest.mark.parametrize("window", [1, 2, 3, 10])
@pytest.mark.parametrize("eta", [0.2, 0.8])
def test_the_weights_are_the_papers_update(window: int, eta: float) -> None:
    rounds = iter(LOSSES)
    settings = SkillIt(graph=GRAPH, eta=eta, window=window, every_steps=2)
    mixing = settings.build(Sources((9, 9, 9), lambda: next(rounds)))
    first = [np.exp(eta * sum(row)) for row in GRAPH]
    assert mixing.weights_S.tolist() == pytest.approx([value / sum(first) for value in first], rel=1e-12)
    for step in range(8):
        mixing.after_step(Moment(step, step / 8))
        done = (step + 1) // 2
        if done:
            assert mixing.weights_S.tolist() == pytest.approx(naive(eta, window, done), rel=1e-12)


def test_without_a_graph_each_skill_counts_its_own_loss() -> None:
    mixing = SkillIt(eta=1.0, every_steps=1).build(Sources((9, 9, 9), lambda: LOSSES[0]))
    assert mixing.weights_S.tolist() == pytest.approx([1 / 3] * 3)
    mixing.after_step(Moment(0, 0.0))
    assert mixing.weights_S.tolist() == pytest.approx((np.exp(LOSSES[0]) / np.exp(LOSSES[0]).sum()).tolist())


def letters(letter: str, num: int) -> Rows:
    records = [{"prompt": f"{letter}{number}", "completion": letter * 3} for number in range(num)]
    return Rows.from_list(records, "completion", letter, letter)


def test_in_training_the_losses_are_the_models_own_on_held_out_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one step of size (nearly) nothing, the weights follow from the untrained model's losses."""
    eta = 3.0
    mix = {"skill_it": {"eta": eta, "every_steps": 1, "window": 1, "num_validation": 6}}
    choices = {"tune": "full", "lr": 1e-12, "steps": 1, "batch_size": 2, "precision": "fp32", "mix": mix}
    parts = [letters("a", 6 + 5), letters("b", 6 + 2)]
    fitted = fit(tiny("llama"), parts, FitSettings.model_validate(choices), folder=tmp_path)
    report = fitted.details["mixture"]
    assert [part["rows"] for part in report] == [5, 2] and fitted.details["held_out"] == 12

    # Which rows are held out is a secret of the mixture: each source's loss lies among those of its rows.
    model = tiny("llama")
    bounds = []
    for part in parts:
        means = []
        for row in part:
            sequence = Encoder.of(model, 128).supervised(row)
            tokens_T = torch.from_numpy(sequence.tokens_T).long()
            with torch.no_grad():
                logits_TV = model.module(input_ids=tokens_T[None]).logits[0]
            nll_T = -torch.log_softmax(logits_TV[:-1], 1).gather(1, tokens_T[1:, None])[:, 0]
            means.append(float(nll_T[torch.from_numpy(sequence.weights_T[1:] > 0)].mean()))
        means.sort()
        bounds.append((np.mean(means[:6]), np.mean(means[-6:])))
    difference = np.log(report[0]["weight"] / report[1]["weight"]) / eta
    (low_a, high_a), (low_b, high_b) = bounds
    assert low_a - high_b - 1e-4 <= difference <= high_a - low_b + 1e-4


def test_what_is_not_learnt_yet_is_drawn_more(tmp_path: Path) -> None:
    """One source is answered at once, the other is noise that cannot be: its weight rises from a half."""
    generator = np.random.default_rng(0)
    noise = [{"prompt": "b", "completion": "".join(generator.choice(list("abcdefgh"), 6))} for _ in range(60)]
    parts = [letters("a", 60), Rows.from_list(noise, "completion", "noise", "noise")]
    mix = {"skill_it": {"eta": 1.0, "every_steps": 10, "num_validation": 8}}
    choices = {"tune": "full", "lr": 5e-3, "steps": 60, "batch_size": 8, "mix": mix}
    report = fit(tiny("llama"), parts, FitSettings.model_validate(choices), folder=tmp_path).details["mixture"]
    assert report[1]["weight"] > 0.8 and report[1]["drawn"] > 1.5 * report[0]["drawn"]


def test_a_graph_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="has 2 numbers in list 2 of 3"):
        SkillIt(graph=((1, 0, 0), (1, 0), (0, 0, 1)))
    with pytest.raises(SettingError, match="is a graph of 3 skills for 2 sources"):
        SkillIt(graph=GRAPH).build(Sources((9, 9), lambda: np.ones(2)))
    with pytest.raises(ValidationError):
        SkillIt(graph=((-1.0,),))
    with pytest.raises(SettingError, match="has 5 rows, of which 8 are to be held out"):
        choices = FitSettings.model_validate({"tune": "full", "steps": 1, "mix": {"skill_it": {"num_validation": 8}}})
        fit(tiny("llama"), [letters("a", 20), letters("b", 5)], choices)
