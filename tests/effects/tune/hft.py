"""HFT against full tuning, over two stages with a skill each."""

from __future__ import annotations

from dataclasses import replace

from effects.bench import Bench
from effects.forgetting import nothing_to_forget, relearnt
from effects.study import Contrast, Study

STEPS = 60
LR = {"full": 1e-3, "hft": 1e-3, "hft, faster": 2e-3}  # at twice the rate HFT learns as fast as full tuning
FIRST, SECOND = "sort_descending", "rotate"


def measure(bench: Bench) -> dict[str, float]:
    found = {}
    for name, lr in LR.items():
        tune, model = name.partition(",")[0], bench.base("tiny")
        for number, skill in enumerate((FIRST, SECOND)):
            # Another seed for each stage, as in a recipe: the half is drawn anew.
            each = replace(bench, seed=bench.seed + 100 * number)
            each.fit(model, each.rows(skill), tune=tune, lr=lr, steps=STEPS).tuning.merge()
        found |= {f"{name}: first": bench.loss(model, FIRST), f"{name}: second": bench.loss(model, SECOND)}
        found[f"{name}: kept"] = bench.loss(model, bench.known("tiny"), 60)
    for name in ("full", "hft"):
        found |= relearnt(bench, name, name, LR[name], STEPS)
    return found


STUDY = Study(
    claim="Training a random half of each block's matrices, another half in every stage, forgets less than full tuning "
    "and learns as much (arXiv:2404.18466).",
    unit="held-out loss in nats per token, after stages of sort_descending (first) and rotate (second), of both and "
    "of the base's skills (kept); arms named wrong: answers in per cent; less is better",
    measure=measure,
    contrasts=(
        Contrast("HFT keeps more of what the base knew", "hft: kept", "full: kept", "below"),
        Contrast("it keeps more of the first stage", "hft: first", "full: first", "below"),
        Contrast("it learns more in the last stage", "hft: second", "full: second", "below"),
        Contrast("at twice the rate it keeps more than full tuning", "hft, faster: kept", "full: kept", "below"),
        nothing_to_forget("hft", "full"),
    ),
    finding="HFT keeps far more of the base's skills and of the first stage, and learns less in the last one, at "
    "twice the rate, too. The control fails: at this rate full tuning spoils a few answers of the base's "
    "skills even while it trains on these, so that a part of what HFT keeps is owed to smaller changes "
    "and not to what the stages teach. Rates tried: full 1e-3; HFT 1e-3, 2e-3.",
)
