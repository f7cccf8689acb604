"""ORPO against imitating the chosen answers, from a base that has never seen the task."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.lab.skill import corrupt
from temper.lab.training import skill_named
from temper.models.model import Model

SKILL = "reverse"
NUM = 768


def answers(bench: Bench, num: int, split: str) -> list[dict[str, str]]:
    """Return right answers, chosen, each with one that has a letter spoilt, rejected."""
    skill, generator = skill_named(SKILL), random.Random(f"spoil {split} {bench.seed}")
    return [
        {"prompt": skill.prompt(word), "chosen": skill.answer(word), "rejected": corrupt(skill.answer(word), generator)}
        for word in skill.arguments(split, num, bench.seed)
    ]


def dealt(bench: Bench, found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the same rows with every rejected answer dealt to another question."""
    others = [each["rejected"] for each in found]
    random.Random(f"deal {bench.seed}").shuffle(others)
    return [{**each, "rejected": other} for each, other in zip(found, others, strict=True)]


def measure(bench: Bench) -> dict[str, float]:
    train, test = answers(bench, NUM, "train"), answers(bench, 200, "test")

    def learnt(rows: Rows, objective: Any) -> Model:
        return bench.tuned("tiny", rows, objective=objective, lr=2e-3, steps=40, batch_size=16)

    def preferred(model: Model) -> float:
        chosen, rejected = (
            bench.answer_logprobs(model, [(each["prompt"], each[side]) for each in test])
            for side in ("chosen", "rejected")
        )
        return float(np.mean([one.sum() - other.sum() for one, other in zip(chosen, rejected, strict=True)]))

    imitated = bench.made("completion", [{"prompt": each["prompt"], "completion": each["chosen"]} for each in train])
    orpo = {"orpo": {"strength": 1.0}}
    return {
        "base": preferred(bench.base("tiny")),
        "sft": preferred(learnt(imitated, "sft")),
        "orpo": preferred(learnt(bench.made("preference", train), orpo)),
        "orpo, rejected dealt": preferred(learnt(bench.made("preference", dealt(bench, train)), orpo)),
    }


STUDY = Study(
    claim="Imitating chosen answers makes rejected ones likelier too; ORPO learns the task and the preference in one "
    "stage, without a reference (arXiv:2403.07691).",
    unit="by how much a right answer is likelier than one with a letter spoilt, held out, in nats, more is better",
    measure=measure,
    contrasts=(
        Contrast("imitating learns to prefer what it imitates", "sft", "base", "above"),
        Contrast("ORPO prefers it by more", "orpo", "sft", "above"),
        Contrast(
            "not by more where the rejected answers are of other questions", "orpo, rejected dealt", "sft", "none"
        ),
    ),
    finding="Not shown: ORPO prefers the right answer by more in three seeds of five, by 0.2 to 0.7 nats, and by less "
    "in two, in one of them by 1.2. With rejected answers of other questions it is about the same. What the pairing "
    "adds is therefore not settled here; that imitating alone learns to prefer what it imitates is shown. All at lr "
    "2e-3 and lambda 1; no other was tried.",
)
