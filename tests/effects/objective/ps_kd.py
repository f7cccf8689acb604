"""PS-KD against plain training and a teacher that stays as it was, over many passes of few spoilt answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from effects.bench import Bench
from effects.preferences import questions, spoilt
from effects.study import Contrast, Study

FEW, MANY = 64, 480
ALPHA = 0.8


def measure(bench: Bench) -> dict[str, float]:
    generator = random.Random(f"spoil {bench.seed}")
    train = [(prompt, spoilt(right, generator)) for prompt, right in questions(bench, MANY, "train")]
    test = [(prompt, spoilt(right, generator)) for prompt, right in questions(bench, 300, "test")]

    def loss(objective: Any, num: int) -> float:
        model = bench.base()
        rows = bench.made("completion", [{"prompt": prompt, "completion": answer} for prompt, answer in train[:num]])
        bench.fit(model, rows, tune="full", objective=objective, lr=1e-3, steps=60, batch_size=16)
        return -float(np.concatenate(bench.answer_logprobs(model, test)).mean())

    past = {"ps_kd": {"alpha": ALPHA}}
    fixed = {"distill": {"teacher": "start", "share": ALPHA}}
    return {
        "sft": loss("sft", FEW),
        "ps_kd": loss(past, FEW),
        "distilled from the start": loss(fixed, FEW),
        "sft, many rows": loss("sft", MANY),
        "ps_kd, many rows": loss(past, MANY),
    }


STUDY = Study(
    claim="Targets softened by the model's own last epoch generalise and calibrate better than hard ones, and than "
    "those softened alike from first to last (arXiv:2006.12000).",
    unit="loss on held-out answers of which letters are spoilt at random, in nats per token, less is better",
    measure=measure,
    contrasts=(
        Contrast("PS-KD over-fits less than hard targets", "ps_kd", "sft", "below"),
        Contrast("the teacher must make progress", "ps_kd", "distilled from the start", "below"),
        Contrast("nothing to gain where rows are many", "ps_kd, many rows", "sft, many rows", "none"),
    ),
)
