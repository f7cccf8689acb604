"""GRAPE among responses in three styles, all of them right."""

from __future__ import annotations

from typing import Any

import numpy as np

from effects.bench import Bench, styled
from effects.study import Contrast, Study
from temper.data.example import Row
from temper.data.rows import Rows
from temper.select.base import Pool
from temper.select.grape import Grape
from temper.signals.scores import Scores

STYLES = ("", ",", "_")
"""what stands between the letters of an answer; the base has only ever seen the first"""
PROMPTS = 384


class Shuffled:
    """A table of scores in which every row has another row's."""

    def __init__(self, scores: Scores, seed: int) -> None:
        self.scores, self.seed = scores, seed

    def mean_logprobs(self, model: Any) -> Any:
        return np.random.default_rng(self.seed).permutation(self.scores.mean_logprobs(model))


def measure(bench: Bench) -> dict[str, float]:
    questions = list(bench.rows("reverse", PROMPTS))
    pool = [styled(row, style) for row in questions for style in STYLES]
    rows = Rows.from_rows(pool, f"styles {bench.seed}")
    test = list(bench.rows("reverse", 100, "test"))

    def chosen(table: Any) -> list[Row]:
        def scores(of: Rows) -> Any:
            return table(Scores(of, bench.cache / "effects"))

        found = Grape().select(
            Pool(rows, scores, lambda _: bench.base("tiny"), lambda _: None, lambda _: rows, "base", bench.seed)
        )
        return [pool[place] for place in found.kept]

    def accuracy(data: list[Row]) -> float:
        # The same rate for every arm; 1e-3 did better than 2e-3 on reverse in development.
        model = bench.tuned("tiny", Rows.from_rows(data, "chosen"), lr=1e-3, steps=STEPS)
        return bench.exact_match(model, test, ignored=",_")

    draws = bench.generator.integers(len(STYLES), size=PROMPTS)
    return {
        "grape": accuracy(chosen(lambda scores: scores)),
        "random": accuracy([styled(row, STYLES[draw]) for row, draw in zip(questions, draws, strict=True)]),
        "commas throughout": accuracy([styled(row, ",") for row in questions]),
        "grape, shuffled scores": accuracy(chosen(lambda scores: Shuffled(scores, bench.seed))),
    }


STEPS = 24

STUDY = Study(
    claim="Training on the response that the base itself finds likeliest, one for each instruction, beats training on "
    "responses that are as right and fit it less (arXiv:2502.04194: up to 17.3 points).",
    unit="exact match of reverse in per cent, in whatever style, more is better",
    measure=measure,
    contrasts=(
        Contrast("GRAPE beats a random choice", "grape", "random", "above"),
        Contrast("GRAPE beats one foreign style throughout", "grape", "commas throughout", "above"),
        Contrast("GRAPE by shuffled scores", "grape, shuffled scores", "random", "none"),
    ),
    finding="GRAPE is right for half of the questions (50 %) after the steps in which the other choices hardly begin "
    "(7 and 4 %): it takes the base's own style nearly always, and the letters of a foreign style must be found two "
    "places further each. So what shows is fit to the base, at a small budget of steps; with many more all arms would "
    "learn.",
)
