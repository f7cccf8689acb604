"""KTO against imitating the good answers, with as many bad ones and with few good ones."""

from __future__ import annotations

import random
from typing import Any

from effects.bench import Bench
from effects.preferences import Pair, chosen_rows, pairs, policy, rewarded_right, right_share
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.models.model import Model

NUM = 256
FEW = 32
LR = 1e-4


def labelled(bench: Bench, good: list[Pair], bad: list[Pair], is_shuffled: bool = False) -> Rows:
    """Return single answers marked good or bad; no two of them answer the same question."""
    answers = [(pair.prompt, pair.chosen) for pair in good] + [(pair.prompt, pair.rejected) for pair in bad]
    labels = [True] * len(good) + [False] * len(bad)
    if is_shuffled:
        random.Random(f"labels {bench.seed}").shuffle(labels)
    rows = [
        {"prompt": prompt, "completion": answer, "label": label}
        for (prompt, answer), label in zip(answers, labels, strict=True)
    ]
    return bench.made("label", rows)


def measure(bench: Bench) -> dict[str, float]:
    start = policy(bench)

    def learnt(rows: Rows, objective: Any, lr: float) -> Model:
        model = bench.copied(start)
        bench.fit(model, rows, tune="full", objective=objective, lr=lr, steps=48, batch_size=32)
        return model

    def imitated(good: list[Pair]) -> float:
        return right_share(bench, learnt(chosen_rows(bench, good), "sft", 3e-4))

    ranked = pairs(bench, NUM)
    good, bad = ranked[: NUM // 2], ranked[NUM // 2 :]
    held_out = pairs(bench, 200, "test")
    kto = learnt(labelled(bench, good, bad), "kto", LR)
    shuffled = learnt(labelled(bench, good, bad, is_shuffled=True), "kto", LR)
    weighted = {"kto": {"desirable_weight": NUM / 2 / FEW}}
    return {
        "start": right_share(bench, start),
        "sft": imitated(good),
        "kto": right_share(bench, kto),
        "sft, few good": imitated(good[:FEW]),
        "kto, few good": right_share(bench, learnt(labelled(bench, good[:FEW], bad), weighted, LR)),
        "reward, kto": rewarded_right(bench, kto, start, held_out),
        "reward, kto on shuffled labels": rewarded_right(bench, shuffled, start, held_out),
        "chance": 50.0,
    }


STUDY = Study(
    claim="KTO learns from single answers marked good or bad, without pairs, what imitating the good ones does not "
    "teach, and with a small part of the good ones still (arXiv:2402.01306: as good as DPO from 1 to 30 B parameters, "
    "with up to 90 % of the desirable data left out).",
    unit="how often a sampled answer is right, in per cent, more is better; reward: held-out pairs whose better answer "
    "has gained more, in per cent",
    measure=measure,
    contrasts=(
        Contrast("KTO makes the policy better", "kto", "start", "above"),
        Contrast("KTO teaches more than imitating the good answers", "kto", "sft", "above"),
        Contrast("also with a quarter of the good answers", "kto, few good", "sft, few good", "above"),
        Contrast(
            "shuffled labels give no reward to the better answer", "reward, kto on shuffled labels", "chance", "none"
        ),
    ),
)
