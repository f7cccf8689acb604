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
        rows = bench.made("completion", [{"prompt": prompt, "completion": answer} for prompt, answer in train[:num]])
        model = bench.tuned("nano", rows, objective=objective, lr=1e-3, steps=60, batch_size=16)
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
    finding="Not shown: over fifteen passes of 64 rows PS-KD is on either side of hard targets by seed, and so is a "
    "teacher that stays as it was. Likely since its past has soon fitted the same spoilt letters, and says little "
    "that the targets do not. The control fails on the other side: with 480 rows and two passes PS-KD loses 0.1 "
    "nats, as in the second pass its own past is four fifths of the target and it learns more slowly. So a short run "
    "has a price to pay that a small gain would not show behind. All at lr 1e-3 and an alpha of 0.8, the only ones "
    "tried; only the loss was looked at, and not the calibration.",
)
