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
LONGER = 0.75
"""share of the pairs of which the longer answer is chosen, other things being equal"""
LR = 1e-4
MEAN_LENGTH = 7.0
"""tokens of an answer; so that both rewards are of one size"""


class Summed(SimplePreferenceOptimization):
    """SimPO without its idea: the reward is the log-probability of the whole answer."""

    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        return self.beta / MEAN_LENGTH * (chosen.logprob_P - rejected.logprob_P)


def with_tails(ranked: list[Pair], longer: float, seed: str) -> list[Pair]:
    """Return the pairs with a tail behind each answer; that of the chosen one is the longer with a probability."""
    generator, found = random.Random(seed), []
    for pair in ranked:
        short, long = sorted(generator.sample(range(LONGEST + 1), 2))
        chosen, rejected = (long, short) if generator.random() < longer else (short, long)
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

    def learnt(objective: Any, flipped: float = 0.0) -> Model:
        model = bench.copied(start)
        longer = 0.5 if flipped else LONGER
        rows = preference_rows(bench, with_tails(pairs(bench, 256, flipped=flipped), longer, f"train {bench.seed}"))
        bench.fit(model, rows, tune="full", objective=objective, lr=LR, steps=40, batch_size=16)
        return model

    models = {
        "start": start,
        "dpo": learnt("dpo"),
        "simpo": learnt("simpo"),
        "simpo, not divided by length": learnt(Summed.model_construct()),
        "simpo, a coin's preferences": learnt("simpo", flipped=0.5),
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
        Contrast("a coin's preferences lengthen nothing", "tail, simpo, a coin's preferences", "tail, start", "none"),
    ),
)
