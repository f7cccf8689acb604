"""What a model gained and lost: every suite's value, compared example by example with the models before it.

Decisions:
- Raw scores are cached, one file for each model, suite and arm, named by all that they follow from: a suite that is
  added, or a stage that is redone, measures only itself. Intervals and comparisons are made anew each time.
- The few-shot arm is the base with worked examples before each prompt; suites without prompts have none.
- A number that is not finite is an error here and never a value in a table.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from temper.core.errors import ModelError, SettingError
from temper.core.files import write_json
from temper.core.hashing import hash_json
from temper.measure.base import Sample, Score, Subject, Suite, Unit, from_plain, plain
from temper.measure.statistics import Interval, Transform, Verdict, count_flips, difference_interval, value_interval
from temper.measure.statistics import verdict as verdict_of
from temper.models.model import Model

Role = Literal["gain", "keep"]
Against = Literal["base", "few_shot", "previous"]


class Change(TypedDict):
    """A value compared with another model's on the same examples."""

    difference: float
    """value minus the other's value"""
    low: float
    high: float
    """ends of its 95 % interval"""
    verdict: Verdict
    negative_flips: int | None
    """examples that were right and are wrong now; None where examples are not right or wrong"""
    positive_flips: int | None
    num_examples: int


class SuiteReport(TypedDict):
    """One model on one suite."""

    role: Role
    metric: str
    unit: Unit
    higher_is_better: bool
    value: float
    low: float
    high: float
    """ends of the value's 95 % interval"""
    num_examples: int
    num_left_out: int
    scores: list[float]
    weights: list[float] | None
    correct: list[bool] | None
    transform: Transform
    groups: NotRequired[list[int]]
    """where the value is one by groups"""
    samples: list[dict[str, str | float]]
    changes: dict[str, Change]
    """by what it is compared with: `base`, `few_shot`, `previous`"""


class Measurement(TypedDict):
    """What `measure.json` holds."""

    suites: dict[str, SuiteReport]
    few_shot: NotRequired[dict[str, SuiteReport]]
    """of the base only"""
    seconds: float


def measure_model(
    model: Model,
    suites: Sequence[tuple[Suite, Role]],
    cache: Path,
    *,
    seed: int = 0,
    shots: int = 0,
    model_key: str | None = None,
    base: Model | None = None,
    base_fingerprint: str = "",
    load_base: Callable[[], Model] | None = None,
    base_reports: Mapping[str, SuiteReport] | None = None,
    few_shot_reports: Mapping[str, SuiteReport] | None = None,
    previous_reports: Mapping[str, SuiteReport] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Measurement:
    """Measure a model on suites, and compare it with others on the same suites.

    For the base itself, leave out `base`, `base_fingerprint` and the reports. For every later model, give at least
    `base_fingerprint`, so that suites which compare with the base find what they kept of it.

    Args:
        model: the model.
        suites: suites with their roles, each with a label of its own.
        cache: a folder for scores, made data and the base's samples.
        seed: of the choice of examples, of sampling and of the bootstrap.
        shots: worked examples of a few-shot arm, which is measured as well when above 0.
        model_key: names the model for the cache; its fingerprint by default.
        base: the untuned base, where it is in memory.
        base_fingerprint: names the untuned base.
        load_base: loads it, for suites that need its weights.
        base_reports: the base's suites, to compare with; likewise `few_shot_reports` and `previous_reports`.
        say: takes a line for the user before each suite.

    Raises:
        SettingError: two suites with one label.
        ModelError: a score that is not finite.
    """
    started = time.monotonic()
    _check_labels([suite for suite, _ in suites])
    others: dict[str, Mapping[str, SuiteReport] | None] = {
        "base": base_reports,
        "few_shot": few_shot_reports,
        "previous": previous_reports,
    }
    key = model_key or model.fingerprint
    subject = Subject(model, base, base_fingerprint, load_base=load_base)
    reports: dict[str, SuiteReport] = {}
    few_shot: dict[str, SuiteReport] = {}
    for suite, role in suites:
        say(f"measuring {suite.label}")
        score = cached_score(suite, subject, cache, key, seed)
        reports[suite.label] = _with_changes(suite_report(score, role, suite.label, seed), suite.label, others, seed)
        worked = suite.shots(shots, cache) if shots else ()
        if worked:
            say(f"measuring {suite.label} after {len(worked)} worked examples")
            score = cached_score(suite, replace(subject, shots=worked), cache, key, seed)
            report = suite_report(score, role, suite.label, seed)
            few_shot[suite.label] = _with_changes(report, suite.label, {"base": reports}, seed)
    measurement: Measurement = {"suites": reports, "seconds": time.monotonic() - started}
    if few_shot:
        measurement["few_shot"] = few_shot
        for label, report in few_shot.items():
            reports[label]["changes"]["few_shot"] = compare(reports[label], report, seed)
    return measurement


def cached_score(suite: Suite, subject: Subject, cache: Path, model_key: str, seed: int) -> Score:
    """Return a suite's score of a model, measured once for all that it follows from.

    A model that has changed since it was named is measured each time.
    """
    weight = subject.model.module.get_input_embeddings().weight
    name = hash_json(
        {
            "suite": suite.fingerprint(),
            "model": model_key,
            "base": subject.base_fingerprint or (subject.base.fingerprint if subject.base else ""),
            "shots": [dict(shot.content) for shot in subject.shots],
            "seed": seed,
            "precision": str(weight.dtype),
        }
    )
    path = cache / "scores" / f"{name}.json"
    is_named = not subject.model.is_changed
    if is_named and path.exists():
        try:
            return from_plain(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):  # damaged; what can be made again is
            path.unlink()
    score = suite.measure(subject, cache, seed)
    _check_finite(score, suite.label)
    if not is_named:
        return score
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, plain(score))
    return score


def suite_report(score: Score, role: Role, label: str, seed: int = 0) -> SuiteReport:
    """Return a score with its value and interval, compared with nothing yet."""
    interval = value_interval(score.scores, score.weights, score.transform, groups=score.groups, seed=seed)
    _check_finite_interval(interval, label)
    report: SuiteReport = {
        "role": role,
        "metric": score.metric,
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "num_examples": len(score.scores),
        "num_left_out": score.num_left_out,
        "scores": list(score.scores),
        "weights": None if score.weights is None else list(score.weights),
        "correct": None if score.correct is None else list(score.correct),
        "transform": score.transform,
        "samples": [_shown(sample) for sample in score.samples],
        "changes": {},
    }
    if score.groups is not None:
        report["groups"] = list(score.groups)
    return report


def compare(now: SuiteReport, before: SuiteReport, seed: int = 0) -> Change:
    """Compare a model with one before it on one suite, example by example.

    Raises:
        ValueError: the two were not measured on the same examples.
    """
    interval = difference_interval(
        now["scores"],
        before["scores"],
        now["weights"],
        before["weights"],
        now["transform"],
        now_groups=now.get("groups"),
        before_groups=before.get("groups"),
        seed=seed,
    )
    is_judged = now["correct"] is not None and before["correct"] is not None
    flips = count_flips(now["correct"] or (), before["correct"] or ()) if is_judged else None
    return {
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "verdict": verdict_of(interval, now["higher_is_better"]),
        "negative_flips": flips.negative if flips else None,
        "positive_flips": flips.positive if flips else None,
        "num_examples": len(now["scores"]),
    }


def _with_changes(
    report: SuiteReport, label: str, others: Mapping[str, Mapping[str, SuiteReport] | None], seed: int
) -> SuiteReport:
    for name, reports in others.items():
        if reports is not None and label in reports:
            report["changes"][name] = compare(report, reports[label], seed)
    return report


def _shown(sample: Sample) -> dict[str, str | float]:
    return {
        "prompt": sample.prompt,
        "expected": sample.expected,
        "output": sample.output,
        "score": sample.score,
    }


def _check_labels(suites: Sequence[Suite]) -> None:
    labels = [suite.label for suite in suites]
    for label in labels:
        if labels.count(label) > 1:
            raise SettingError("measure", label, f"labels {labels.count(label)} suites", "give one of them a `name`")


def _check_finite(score: Score, label: str) -> None:
    broken = next((number for number, value in enumerate(score.scores, 1) if not math.isfinite(value)), None)
    if broken is not None:
        raise ModelError(
            f"{label}: example {broken} scores {score.scores[broken - 1]}, which is no number; the model's weights or "
            "its precision are broken: look at the stage's losses, lower its lr, or measure in float32"
        )


def _check_finite_interval(interval: Interval, label: str) -> None:
    if not all(map(math.isfinite, (interval.value, interval.low, interval.high))):
        raise ModelError(
            f"{label}: the value is {interval.value} (from {interval.low} to {interval.high}), beyond what a number "
            "can hold; the model is broken: look at the stage's losses, or lower its lr"
        )
