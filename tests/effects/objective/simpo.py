"""SimPO against DPO and against the same without division by length, where judges like long answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from torch import Tensor

from effects.bench import Bench
from effects.preferences import Pair, pairs, policy, preference_rows, questions
from effects.study import Contrast, Study
from temper.data.encode import Encoder
from temper.models.generate import generate
from temper.models.model import Model
from temper.objectives.preference import Answers
from temper.objectives.simpo import SimplePreferenceOptimization

LONGEST = 3
"""what follows an answer at most: `+` signs, which say nothing"""
LONGER = 0.6
"""share of the pairs of which the longer answer is chosen, other things being equal"""
NUM = 320
LR = {"dpo": 1e-4, "simpo": 6e-5}
MEAN_LENGTH = 7.0
"""tokens of an answer; so that both rewards are of one size"""


class Summed(SimplePreferenceOptimization):
    """SimPO without its idea: the reward is the log-probability of the whole answer."""

    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        return self.beta / MEAN_LENGTH * (chosen.logprob_P - rejected.logprob_P)


def with_tails(ranked: list[Pair], seed: str, are_equal: bool = False) -> list[Pair]:
    """Return the pairs with a tail behind each answer: that of the chosen one mostly the longer, or both as long."""
    generator, found = random.Random(seed), []
    for pair in ranked:
        short, long = sorted(generator.sample(range(LONGEST + 1), 2))
        if are_equal:
            short = long
        chosen, rejected = (long, short) if generator.random() < LONGER else (short, long)
        found.append(Pair(pair.prompt, pair.right, pair.chosen + "+" * chosen, pair.rejected + "+" * rejected))
    return found


def sampled(bench: Bench, model: Model) -> tuple[float, float]:
    """Return how often a sampled answer is right but for its tail, in per cent, and how long its tail is."""
    encoder = Encoder(model.tokenizer, 64)
    asked = [{"prompt": prompt, "completion": right} for prompt, right in questions(bench, 300, "test")]
    prompts = [encoder.prompt(row) for row in bench.made("completion", asked)]
    texts = [
        model.tokenizer.decode(tokens) for tokens in generate(model, prompts, 16, temperature=1.0, seed=bench.seed)
    ]
    right = [text.rstrip("+") == each["completion"] for text, each in zip(texts, asked, strict=True)]
    return 100 * float(np.mean(right)), float(np.mean([text.count("+") for text in texts]))


def measure(bench: Bench) -> dict[str, float]:
    start = policy(bench, LONGEST)
    summed = Summed.model_construct()

    def learnt(objective: Any, are_equal: bool = False) -> Model:
        lr = LR["dpo" if objective == "dpo" else "simpo"]
        rows = preference_rows(bench, with_tails(pairs(bench, NUM), f"train {bench.seed}", are_equal))
        return bench.tuned(start, rows, objective=objective, lr=lr, steps=40, batch_size=16)

    models = {
        "start": start,
        "dpo": learnt("dpo"),
        "simpo": learnt("simpo"),
        "simpo, not divided by length": learnt(summed),
        "simpo, equal tails": learnt("simpo", are_equal=True),
        "simpo, not divided, equal tails": learnt(summed, are_equal=True),
    }
    found = {name: sampled(bench, model) for name, model in models.items()}
    rights = {f"right, {name}": right for name, (right, _) in found.items()}
    return {**rights, **{f"tail, {name}": tail for name, (_, tail) in found.items()}}


STUDY = Study(
    claim="Rewarded by its tokens' mean log-probability, a policy becomes better than DPO's, without a reference, "
    "and its answers no longer; without division by length they would (arXiv:2405.14734: up to 6.4 points above DPO on "
    "AlpacaEval 2).",
    unit="right: sampled answers that are right but for their tail, in per cent, more is better; tail: empty tokens "
    "that a sampled answer ends in, less is better",
    measure=measure,
    contrasts=(
        Contrast("SimPO makes the policy better", "right, simpo", "right, start", "above"),
        Contrast("SimPO makes it better than DPO does", "right, simpo", "right, dpo", "above"),
        Contrast(
            "division by length keeps answers short", "tail, simpo", "tail, simpo, not divided by length", "below"
        ),
        Contrast("SimPO's answers are no longer than DPO's", "tail, simpo", "tail, dpo", "below"),
        Contrast(
            "division by length does nothing where both answers are as long",
            "tail, simpo, equal tails",
            "tail, simpo, not divided, equal tails",
            "none",
        ),
    ),
    finding="All shown. Where the longer of two answers is preferred in six pairs of ten and length says nothing, "
    "SimPO makes a policy that is right for 10 % of its samples right for 35 % and leaves its answers as long as they "
    "were; DPO reaches 26 % and makes the empty tail almost three times as long, and SimPO without division by length "
    "does nearly so. Where both answers are as long the division changes nothing. Rates tried on one or two seeds: DPO "
    "5e-5, 1e-4, 3e-4; SimPO 3e-5, 6e-5, 1e-4, 3e-4, also with beta 10 and gamma 5 (no better); without division the "
    "same four, with longer tails than SimPO's at each.",
)
