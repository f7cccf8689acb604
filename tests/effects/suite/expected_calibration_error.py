"""Calibration when few rows are learnt by heart, beside many rows, and what one temperature mends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.measure.base import Score, Subject, Suite
from temper.models.model import Model

SKILL = "reverse"
QUESTIONS = 200
TEMPERATURES = (0.7, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
DRAWS = 20


def cooled(bench: Bench, model: Model, temperature: float) -> Model:
    """Return a model whose logits are divided by a temperature: its last norm scales all of them."""
    twin = bench.copied(model)
    with torch.no_grad():
        twin.module.get_parameter("model.norm.weight").div_(temperature)
    twin.is_changed = True
    return twin


def fitted_temperature(bench: Bench, model: Model) -> float:
    """Return the temperature with the lowest loss on other held-out questions."""
    other = replace(bench, seed=1000 + bench.seed)
    return min(TEMPERATURES, key=lambda temperature: other.loss(cooled(bench, model, temperature), SKILL))


def as_sure_as_it_says(bench: Bench, score: Score) -> float:
    """Return the error of a model that is right just as often as this one says, the mean of some draws."""
    sure = np.asarray(score.confidences)
    draws = [sure - (bench.generator.random(len(sure)) < sure) for _ in range(DRAWS)]
    return 100 * float(np.mean([replace(score, scores=tuple(draw.tolist())).value for draw in draws]))


def measure(bench: Bench) -> dict[str, float]:
    source = {"lab": {"skill": SKILL, "num_test": QUESTIONS, "seed": bench.seed}}
    of = {"exact_match": {"source": source, "examples": QUESTIONS, "max_new_tokens": 8}}
    suite = Suite.parse({"expected_calibration_error": {"of": of}})

    def learnt(num: int, steps: int, of: Bench = bench) -> Model:
        return of.tuned("tiny", of.rows(SKILL, num), lr=1e-3, steps=steps)

    def score(model: Model) -> Score:
        return suite.measure(Subject(model), bench.cache)

    by_heart = learnt(64, 60)
    found = score(by_heart)
    return {
        "64 rows, 60 steps": 100 * found.value,
        "64 other rows, 60 steps": 100 * score(learnt(64, 60, replace(bench, seed=100 + bench.seed))).value,
        "64 rows, 24 steps": 100 * score(learnt(64, 24)).value,
        "2,048 rows, 24 steps": 100 * score(learnt(2048, 24)).value,
        "64 rows, 60 steps, a temperature": 100
        * score(cooled(bench, by_heart, fitted_temperature(bench, by_heart))).value,
        "right as often as it says": as_sure_as_it_says(bench, found),
    }


STUDY = Study(
    claim="Trained long after it has learnt its rows, a model is surer than it is right, since the likelihood is "
    "overfitted while the accuracy holds; one temperature, fitted on held-out examples, mends most of it "
    "(arXiv:1706.04599, sections 3 and 4).",
    unit="expected calibration error of reverse in per cent, less is better",
    measure=measure,
    contrasts=(
        Contrast("learning few rows by heart spoils calibration", "64 rows, 60 steps", "64 rows, 24 steps", "above"),
        Contrast("and more than many rows do", "64 rows, 60 steps", "2,048 rows, 24 steps", "above"),
        Contrast(
            "the error is there, and no artefact of bins", "64 rows, 60 steps", "right as often as it says", "above"
        ),
        Contrast("a temperature mends it", "64 rows, 60 steps, a temperature", "64 rows, 60 steps", "below"),
        Contrast("64 other rows, another seed", "64 other rows, 60 steps", "64 rows, 60 steps", "none"),
    ),
    finding="The measure finds an error of 22 % after 60 steps on few rows, where a model that is right as often as it "
    "says would show 7, by the bins alone. Learning the rows by heart spoils calibration: after 24 steps the error is "
    "13 %. That it is larger than after 24 steps on many rows (15 %) is so in four seeds of five, and not shown. A "
    "temperature mends it in every seed, to 9 %. In an earlier run, with one base for all seeds, the error was 10 % "
    "and neither the steps nor a temperature showed. Another draw of 64 rows moves the error by up to 10 points.",
)
