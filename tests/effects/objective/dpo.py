"""DPO against imitating the chosen answers; cDPO against DPO where some preferences are the wrong way round."""

from __future__ import annotations

from typing import Any

from effects.bench import Bench
from effects.preferences import chosen_rows, equals, pairs, policy, preference_rows, rewarded_right, right_share
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.models.model import Model

NUM, FEW = 256, 96
FLIPPED = 0.3
LR = 1e-4


def measure(bench: Bench) -> dict[str, float]:
    start = policy(bench)

    def learnt(rows: Rows, objective: Any, lr: float) -> Model:
        model = bench.copied(start)
        bench.fit(model, rows, tune="full", objective=objective, lr=lr, steps=48, batch_size=16)
        return model

    # Eight passes of few pairs, so that what is wrong in them can be learnt by heart.
    ranked, noisy = pairs(bench, NUM), preference_rows(bench, pairs(bench, FEW, flipped=FLIPPED))
    held_out = pairs(bench, 200, "test")
    dpo = learnt(preference_rows(bench, ranked), "dpo", LR)
    coin = learnt(preference_rows(bench, pairs(bench, NUM, flipped=0.5)), "dpo", LR)
    return {
        "start": right_share(bench, start),
        "sft": right_share(bench, learnt(chosen_rows(bench, ranked), "sft", 3e-4)),
        "dpo": right_share(bench, dpo),
        "dpo, 30 % flipped": right_share(bench, learnt(noisy, "dpo", LR)),
        "cdpo, 30 % flipped": right_share(bench, learnt(noisy, {"cdpo": {"flipped": FLIPPED}}, LR)),
        "reward, dpo": rewarded_right(bench, dpo, start, held_out),
        "reward, dpo by a coin": rewarded_right(bench, coin, start, held_out),
        "reward, equals": rewarded_right(bench, dpo, start, equals(bench, 200)),
        "chance": 50.0,
    }


STUDY = Study(
    claim="DPO learns from ranked answers what imitating the better one does not teach (arXiv:2305.18290: its win "
    "rates exceed those of fine-tuning on the preferred answers); cDPO withstands preferences that are the wrong way "
    "round (E. Mitchell, 2023).",
    unit="how often a sampled answer is right, in per cent, more is better; reward: held-out pairs whose better answer "
    "has gained more (of equals: whose first in the alphabet has), in per cent",
    measure=measure,
    contrasts=(
        Contrast("DPO makes the policy better", "dpo", "start", "above"),
        Contrast("DPO teaches more than imitating the chosen answers", "dpo", "sft", "above"),
        Contrast("cDPO withstands flipped preferences", "cdpo, 30 % flipped", "dpo, 30 % flipped", "above"),
        Contrast("a coin's preferences reward the better answer less", "reward, dpo by a coin", "reward, dpo", "below"),
        Contrast(
            "of equally good answers the first in the alphabet is not preferred", "reward, equals", "chance", "none"
        ),
    ),
    also=("objective/cdpo",),
)
