"""Drift is 0 for the base, grows with noise, and estimates the divergence that full distributions give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny
from measuring import add_noise
from temper.core.errors import ModelError
from temper.measure.base import Subject
from temper.measure.drift import Drift, Reference
from temper.measure.statistics import value_interval, value_of
from temper.models.model import Model


def exact_divergence(base: Model, model: Model, texts: list[np.ndarray]) -> float:
    """KL(base || model) in nats per token along texts, from whole distributions."""
    total, num = 0.0, 0
    for text in texts:
        tokens = torch.tensor([text.tolist()])
        with torch.no_grad():
            ours, theirs = (side.module(tokens).logits[0, :-1].double().log_softmax(-1) for side in (base, model))
        total += float((ours.exp() * (ours - theirs)).sum())
        num += len(text) - 1
    return total / num


def test_the_base_has_drifted_by_exactly_nothing(tmp_path: Path) -> None:
    base, suite = tiny(), Drift(texts=16, length=24)
    first = suite.measure(Subject(base), tmp_path)
    again = suite.measure(Subject(tiny(), base_fingerprint=base.fingerprint), tmp_path)
    assert set(first.scores) == set(again.scores) == {0.0}
    interval = value_interval(first.scores, first.weights)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_drift_grows_with_noise_and_so_does_the_loss(tmp_path: Path) -> None:
    base = tiny()
    drift, loss = Drift(texts=64, length=32), Drift(texts=64, length=32, metric="loss")
    subjects = [Subject(base), *(Subject(add_noise(tiny(), scale), base) for scale in (0.01, 0.03, 0.1))]
    for suite in (drift, loss):
        scores = [suite.measure(subject, tmp_path) for subject in subjects]
        values = [value_of(score.scores, score.weights) for score in scores]
        assert values == sorted(values) and len(set(values)) == 4
        assert not scores[0].higher_is_better and scores[0].unit == "nats per token"
    assert min(drift.measure(subjects[1], tmp_path).scores) >= 0


@pytest.mark.parametrize("scale", [0.02, 0.06])
def test_the_estimate_agrees_with_whole_distributions(scale: float, tmp_path: Path) -> None:
    base, model = tiny(), add_noise(tiny(), scale)
    suite = Drift(texts=128, length=32)
    score = suite.measure(Subject(model, base), tmp_path)
    interval = value_interval(score.scores, score.weights)
    texts = suite._reference(Subject(model, base), tmp_path, 0).texts
    assert interval.low <= exact_divergence(base, model, texts) <= interval.high
    # Control: the interval is no wider than it need be, so half as much noise again lies outside of it.
    further = exact_divergence(base, add_noise(tiny(), 1.5 * scale), texts)
    assert further > interval.high


def test_the_base_is_needed_once(tmp_path: Path) -> None:
    base, model = tiny(), add_noise(tiny(), 0.05)
    suite = Drift(texts=8, length=16)
    with pytest.raises(ModelError, match="measure the base first"):
        suite.measure(Subject(model, base_fingerprint=base.fingerprint), tmp_path)
    with_base = suite.measure(Subject(model, base), tmp_path)
    assert suite.measure(Subject(model, base_fingerprint=base.fingerprint), tmp_path) == with_base
    assert suite.measure(Subject(model, base), tmp_path, seed=1) != with_base


def test_texts_survive_the_cache(tmp_path: Path) -> None:
    texts = [np.array([1, 5, 2], np.int32), np.array([1, 9], np.int32)]
    Reference(texts, [np.array([-0.5, -1.25]), np.array([-3.0])]).write(tmp_path / "deep" / "texts.npz")
    read = Reference.read(tmp_path / "deep" / "texts.npz")
    assert [text.tolist() for text in read.texts] == [[1, 5, 2], [1, 9]]
    assert [own.tolist() for own in read.logprobs] == [[-0.5, -1.25], [-3.0]]
