"""ECE against the formula written naively and against scikit-learn's bins; confidences against plain forward passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from families import tiny
from measuring import write_rows
from temper.core.errors import SettingError
from temper.measure.base import Subject, Suite, from_plain, plain
from temper.measure.calibration_error import bin_of
from temper.measure.report import measure_model
from temper.measure.statistics import difference_interval, value_interval, value_of


def naive(confidences: Any, correct: Any, num_bins: int) -> float:
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = [i for i, c in enumerate(confidences) if low < c <= high or (number == 0 and c == 0)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def choices_file(folder: Path, num: int = 60) -> str:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num):
        choices = ["".join(generator.choice(list("abcdef"), 3)) + str(place) for place in range(4)]
        right = int(generator.integers(4))
        rows.append({"prompt": f"q{number}: ", "choices": choices, "answer": right, "completion": choices[right]})
    return write_rows(folder / "choices.jsonl", rows)


@pytest.mark.parametrize("num_bins", [1, 5, 15])
def test_it_is_the_formula_and_scikit_learns_bins(tmp_path: Path, num_bins: int) -> None:
    inner = {"multiple_choice": {"source": choices_file(tmp_path), "split": "train"}}
    suite = Suite.parse({"expected_calibration_error": {"of": inner, "bins": num_bins}})
    score = suite.measure(Subject(tiny()), tmp_path / "cache")
    right = Suite.parse(inner).measure(Subject(tiny()), tmp_path / "cache").correct
    assert score.confidences is not None and right is not None
    assert score.value == pytest.approx(naive(score.confidences, right, num_bins), abs=1e-12)
    truth, sure = calibration_curve(right, score.confidences, n_bins=num_bins)
    counts = np.bincount([bin_of(confidence, num_bins) for confidence in score.confidences], minlength=num_bins)
    reference = float((counts[counts > 0] / len(right) * np.abs(truth - sure)).sum())
    assert score.value == pytest.approx(reference, abs=1e-12)
    assert 0 < score.value < 1
    assert from_plain(json.loads(json.dumps(plain(score)))) == score


def test_confidence_is_the_probability_among_the_choices(tmp_path: Path) -> None:
    model = tiny()
    source = choices_file(tmp_path, 12)
    inner = {"multiple_choice": {"source": source, "split": "train", "reserve": 0}}
    score = Suite.parse({"expected_calibration_error": {"of": inner}}).measure(Subject(model), tmp_path / "cache")
    assert score.confidences is not None
    for line, confidence in zip(Path(source).read_text().splitlines(), score.confidences, strict=True):
        row = json.loads(line)
        sums = []
        for choice in row["choices"]:
            prompt = model.tokenizer(row["prompt"]).input_ids
            whole = prompt + model.tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logprobs = model.module(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(float(logprobs[place - 1, whole[place]]) for place in range(len(prompt), len(whole))))
        assert confidence == pytest.approx(float(torch.tensor(sums).softmax(0).max()), rel=1e-4)


def test_confidence_of_what_was_written_is_its_probability(tmp_path: Path) -> None:
    model = tiny()
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"say {n}: ", "completion": str(n)} for n in range(10)])
    inner = {"exact_match": {"source": source, "split": "train", "reserve": 0, "max_new_tokens": 5}}
    score = Suite.parse({"expected_calibration_error": {"of": inner}}).measure(Subject(model), tmp_path / "cache")
    assert score.confidences is not None
    for number, confidence in enumerate(score.confidences):
        tokens, probability = model.tokenizer(f"say {number}: ").input_ids, 1.0
        for _ in range(5):
            with torch.no_grad():
                now = model.module(torch.tensor([tokens])).logits[0, -1].softmax(-1)
            probability *= float(now.max())
            tokens = [*tokens, int(now.argmax())]
            if tokens[-1] == model.tokenizer.eos_token_id:
                break
        assert confidence == pytest.approx(probability, rel=1e-3)
    assert score.samples[0].score == score.confidences[0]


def test_a_sure_and_right_model_has_none_and_a_sure_and_wrong_one_all() -> None:
    assert value_of([0.0] * 5, transform="by group", groups=[14] * 5) == 0
    assert value_of([1.0] * 5, transform="by group", groups=[14] * 5) == 1
    # Errors of opposite sign cancel within a bin and not between bins.
    assert value_of([0.5, -0.5], transform="by group", groups=[3, 3]) == 0
    assert value_of([0.5, -0.5], transform="by group", groups=[3, 7]) == 0.5
    assert [bin_of(p, 10) for p in (0.0, 0.05, 0.1, 0.11, 0.95, 1.0)] == [0, 0, 0, 1, 9, 9]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """A model that is 0.8 sure and right in 0.6: ECE 0.2, far from the kink at 0."""
    held = 0
    for seed in range(60):
        right = np.random.default_rng(seed).random(150) < 0.6
        interval = value_interval((0.8 - right).tolist(), transform="by group", groups=[11] * 150, num_resamples=400)
        held += interval.low <= 0.2 <= interval.high
    assert held >= 51, "0.95 of 60, less three standard errors"
    same = difference_interval(
        [0.5, -0.2, 0.1], [0.5, -0.2, 0.1], transform="by group", now_groups=[1, 2, 3], before_groups=[1, 2, 3]
    )
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="each needs one"):
        value_of([0.5, 0.1], transform="by group", groups=[1])


def test_it_stands_in_a_report_beside_what_it_is_of(tmp_path: Path) -> None:
    inner = {"multiple_choice": {"source": choices_file(tmp_path), "split": "train"}}
    suite = Suite.parse({"expected_calibration_error": {"of": inner}})
    base = measure_model(tiny(), [(suite, "keep")], tmp_path)
    other = tiny(seed=1)
    measured = measure_model(other, [(suite, "keep")], tmp_path, base_reports=base["suites"])
    report = measured["suites"]["choices.jsonl calibration"]
    assert report["metric"] == "expected calibration error" and not report["higher_is_better"]
    change = report["changes"]["base"]
    difference = report["value"] - base["suites"]["choices.jsonl calibration"]["value"]
    assert change["difference"] == pytest.approx(difference)
    assert change["low"] <= change["difference"] <= change["high"]


def test_a_suite_without_answers_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "hello there"}])
    suite = Suite.parse({"expected_calibration_error": {"of": {"perplexity": {"source": source, "split": "train"}}}})
    with pytest.raises(SettingError, match="no right or wrong answers"):
        suite.measure(Subject(tiny()), tmp_path / "cache")
