"""Distillation where a question has several answers: soft targets against labels, and the divergences."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.lab.training import skill_named
from temper.models.model import Model

OFTEN, RARE = "copy", "shift"
"""what is answered, and what is answered sometimes; the base knows both under other words"""
OFTEN_SHARE = 0.7
FEW = 64
TEACHER: dict[str, Any] = {"lr": 2e-3, "steps": 60, "batch_size": 16}
STUDENT: dict[str, Any] = {"lr": 1e-3, "steps": 40, "batch_size": 16}


def rows(bench: Bench, num: int, often_share: float) -> Rows:
    """Return questions with one of their answers each."""
    generator = random.Random(f"answers {bench.seed}")
    words = skill_named(OFTEN).arguments("train", num, bench.seed)
    named = [OFTEN if generator.random() < often_share else RARE for _ in words]
    answers = [skill_named(name).answer(word) for word, name in zip(words, named, strict=True)]
    return bench.made(
        "completion",
        [{"prompt": f"swap:{word}=", "completion": answer} for word, answer in zip(words, answers, strict=True)],
    )


def answered(bench: Bench, model: Model) -> tuple[list[float], list[float]]:
    """Return the log-probabilities of the frequent and of the rare answer to each of 200 held-out questions."""
    words = skill_named(OFTEN).arguments("test", 200, bench.seed)
    often, rare = (
        [
            float(each.sum())
            for each in bench.answer_logprobs(model, [(f"swap:{w}=", skill_named(name).answer(w)) for w in words])
        ]
        for name in (OFTEN, RARE)
    )
    return often, rare


def measure(bench: Bench) -> dict[str, float]:
    def learnt(objective: Any, teacher: Model, often_share: float) -> tuple[list[float], list[float]]:
        data = rows(bench, FEW, often_share)
        model = bench.tuned("nano", data, {"teacher/model": teacher}, objective=objective, **STUDENT)
        return answered(bench, model)

    def taught(often_share: float) -> Model:
        return bench.tuned("nano", rows(bench, 1024, often_share), **TEACHER)

    def loss(found: tuple[list[float], list[float]], often_share: float = OFTEN_SHARE) -> float:
        return -often_share * float(np.mean(found[0])) - (1 - often_share) * float(np.mean(found[1]))

    def right(found: tuple[list[float], list[float]]) -> float:
        return 100 * float(np.mean(np.exp(found[0]) + np.exp(found[1])))

    def rare(found: tuple[list[float], list[float]]) -> float:
        return 100 * float(np.mean(np.exp(found[1])))

    def by(divergence: str, share: float = 1.0) -> dict[str, Any]:
        return {"distill": {"teacher": "teacher/model", "divergence": divergence, "share": share}}

    unsure, certain = taught(OFTEN_SHARE), taught(1.0)
    labels = learnt("sft", unsure, OFTEN_SHARE)
    forward, reverse, skewed = (learnt(by(name), unsure, OFTEN_SHARE) for name in ("forward", "reverse", "skewed"))
    return {
        "loss, labels": loss(labels),
        "loss, forward": loss(forward),
        "loss, labels, one answer": loss(learnt("sft", certain, 1.0), 1.0),
        "loss, forward, one answer": loss(learnt(by("forward"), certain, 1.0), 1.0),
        "right, forward": right(forward),
        "right, reverse": right(reverse),
        "right, skewed": right(skewed),
        "rare, forward": rare(forward),
        "rare, reverse": rare(reverse),
    }


STUDY = Study(
    claim="A teacher's soft targets teach from few examples what their labels do not (arXiv:1503.02531: 3 % of the "
    "data instead of all). The reverse divergence keeps to what the teacher mostly says and writes less that it never "
    "would (MiniLLM, arXiv:2306.08543); the skewed one learns faster than the plain (DistiLLM, arXiv:2402.03898).",
    unit="loss in nats per answer, less is better; right and rare: probability in per cent of either right answer, and "
    "of the rarer one of them",
    measure=measure,
    contrasts=(
        Contrast("soft targets teach more than labels", "loss, forward", "loss, labels", "below"),
        Contrast("reverse writes more that is right than forward", "right, reverse", "right, forward", "above"),
        Contrast("reverse leaves the rarer answer aside", "rare, reverse", "rare, forward", "below"),
        Contrast("skewed writes more that is right than forward", "right, skewed", "right, forward", "above"),
        Contrast(
            "a teacher of one answer says no more than the labels",
            "loss, forward, one answer",
            "loss, labels, one answer",
            "none",
        ),
    ),
    finding="Where questions have two answers, soft targets teach more from 64 examples than their labels do, in every "
    "seed. The control holds 0 only since its interval is wide: where there is one answer soft targets teach less in "
    "every seed, likely since the teacher is not wholly sure of it while labels are, and in one seed by far less (4.3 "
    "nats for 0.7); softness alone thus does not explain the gain. The reverse divergence writes more that is right "
    "than the forward one, as claimed: 25 % for 16 %. That it gives the rarer answer less shows in four seeds of five, "
    "and so not by this interval; that the skewed one (17 %) writes more that is right is not shown. All students at "
    "lr 1e-3, the only one tried.",
)
