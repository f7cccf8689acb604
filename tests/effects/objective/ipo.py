"""IPO against DPO as training goes on: does the margin stop where it is told to?"""

from __future__ import annotations

from typing import Any

import numpy as np

from effects.bench import Bench
from effects.preferences import Pair, pairs, policy, preference_rows
from effects.study import Contrast, Study
from temper.models.model import Model

NUM = 48
FEW, MANY = 40, 100
TAU = 1.0
"""the margin aimed at is 1 / (2 tau) = 0.5 nats per token"""


def measure(bench: Bench) -> dict[str, float]:
    start = policy(bench)
    held_out = pairs(bench, 100, "test")

    def learnt(objective: Any, steps: int, ranked: list[Pair]) -> Model:
        model = bench.copied(start)
        how: dict[str, Any] = {"tune": "full", "lr": 3e-4, "schedule": "constant", "batch_size": 8}
        bench.fit(model, preference_rows(bench, ranked), objective=objective, steps=steps, **how)
        return model

    # Few pairs, seen again and again: no answer of a pair is ever preferred but one.
    seen, ipo = pairs(bench, NUM), {"ipo": {"tau": TAU}}
    models = {
        f"{name}, {steps} steps": learnt(objective, steps, seen)
        for name, objective in (("dpo", "dpo"), ("ipo", ipo))
        for steps in (FEW, MANY)
    }
    found = {name: margin(bench, model, start, seen) for name, model in models.items()}
    growth = {
        f"{name}, growth": found[f"{name}, {MANY} steps"] - found[f"{name}, {FEW} steps"] for name in ("dpo", "ipo")
    }
    # A coin's preferences can be learnt by heart, and say nothing of other pairs.
    coin = learnt(ipo, FEW, pairs(bench, NUM, flipped=0.5))
    return {
        **found,
        **growth,
        "held out, ipo": margin(bench, models[f"ipo, {FEW} steps"], start, held_out),
        "held out, ipo by a coin": margin(bench, coin, start, held_out),
        "zero": 0.0,
    }


def margin(bench: Bench, model: Model, start: Model, ranked: list[Pair]) -> float:
    """Return by how much the chosen answers have gained on the rejected ones, in nats per token."""
    gains = []
    for side in ("chosen", "rejected"):
        asked = [(pair.prompt, getattr(pair, side)) for pair in ranked]
        now, before = (bench.answer_logprobs(each, asked) for each in (model, start))
        gains.append(np.mean([one.mean() - other.mean() for one, other in zip(now, before, strict=True)]))
    return float(gains[0] - gains[1])


STUDY = Study(
    claim="Where one answer is always preferred, DPO widens the margin between the two without end, whatever beta; "
    "IPO widens it to 1 / (2 tau) and stops (arXiv:2310.12036).",
    unit=f"margin of log-ratios on the pairs trained on (or held out), in nats per token; IPO aims at {1 / (2 * TAU)}",
    measure=measure,
    contrasts=(
        Contrast(f"DPO's margin goes on growing after {FEW} steps", "dpo, growth", "zero", "above"),
        Contrast(f"IPO's grows less between {FEW} and {MANY} steps", "ipo, growth", "dpo, growth", "below"),
        Contrast("IPO prefers the better answer of pairs that it has not seen", "held out, ipo", "zero", "above"),
        Contrast("not after a coin's preferences", "held out, ipo by a coin", "zero", "none"),
    ),
)
