"""SimPO against DPO and against the same without division by length, where judges like long answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from torch import Tensor

from effects.bench import Bench
from effects.preferences import Pair, pairs, policy, preference_rows, questions, ranked_right
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


def tail(bench: Bench, model: Model) -> float:
    """Return how long the tails are that a model samples."""
    encoder = Encoder(model.tokenizer, 64)
    asked = [{"prompt": prompt, "completion": right} for prompt, right in questions(bench, 200, "test")]
    prompts = [encoder.prompt(row) for row in bench.made("completion", asked)]
    texts = [
        model.tokenizer.decode(tokens) for tokens in generate(model, prompts, 16, temperature=1.0, seed=bench.seed)
    ]
    return float(np.mean([text.count("+") for text in texts]))


def measure(bench: Bench) -> dict[str, float]:
    start = policy(bench, LONGEST)
    held_out = with_tails(pairs(bench, 200, "test"), 0.5, f"test {bench.seed}")

    def learnt(objective: Any, lr: float, flipped: float = 0.0) -> Model:
        model = bench.copied(start)
        longer = 0.5 if flipped else LONGER
        rows = preference_rows(bench, with_tails(pairs(bench, 256, flipped=flipped), longer, f"train {bench.seed}"))
        bench.fit(model, rows, tune="full", objective=objective, lr=lr, steps=40, batch_size=16)
        return model

    models = {
        "start": start,
        "dpo": learnt("dpo", 3e-4),
        "simpo": learnt("simpo", 3e-4),
        "simpo, not divided by length": learnt(Summed.model_construct(), 3e-4),
        "simpo, a coin's preferences": learnt("simpo", 3e-4, flipped=0.5),
    }
    ranked = {f"ranked, {name}": ranked_right(bench, model, held_out) for name, model in models.items()}
    return {**ranked, **{f"tail, {name}": tail(bench, models[name]) for name in list(models)[:4]}}


STUDY = Study(
    claim="By its mean log-probability, which it also writes by, a SimPO policy ranks answers better than DPO's does, "
    "without a reference; without division by length it would write longer and longer (arXiv:2405.14734: up to 6.4 "
    "points above DPO on AlpacaEval 2 at answers of the same length).",
    unit="ranked: pairs of held-out answers whose better one is the likelier by its mean token, in per cent, more is "
    "better; tail: empty tokens that a sampled answer ends in, less is better",
    measure=measure,
    contrasts=(
        Contrast("SimPO learns to rank", "ranked, simpo", "ranked, start", "above"),
        Contrast("SimPO ranks better than DPO", "ranked, simpo", "ranked, dpo", "above"),
        Contrast(
            "division by length keeps answers short", "tail, simpo", "tail, simpo, not divided by length", "below"
        ),
        Contrast(
            "a coin's preferences teach no ranking", "ranked, simpo, a coin's preferences", "ranked, start", "none"
        ),
    ),
)
