"""Tagging with open attention against causal attention, where a tag hangs on what follows and on what precedes."""

from __future__ import annotations

import random

import torch

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.encode import Encoder
from temper.data.example import Example
from temper.data.pack import pack
from temper.lab.skill import LETTERS
from temper.objectives.labelling import LabelTarget
from temper.objectives.tag import Tagging

TAGS = ("even", "odd")
LR, STEPS = 1e-3, 90


def contents(bench: Bench, num: int, split: str, offset: int) -> list[dict[str, list[str]]]:
    """Return texts whose letters are tagged by their neighbour's place in the alphabet; at the end by their own."""
    generator = random.Random(f"{split} {bench.seed}")
    found = []
    for _ in range(num):
        words = generator.choices(LETTERS, k=generator.randint(3, 5))
        neighbours = [
            words[place + offset] if 0 <= place + offset < len(words) else word for place, word in enumerate(words)
        ]
        found.append({"words": words, "tags": [TAGS[LETTERS.index(word) % 2] for word in neighbours]})
    return found


def accuracy(
    bench: Bench, causal: bool, offset: int, is_drawn: bool = False, lr: float = LR, steps: int = STEPS
) -> float:
    """Return the share of inner letters of new texts that are tagged right, in per cent."""
    rows = contents(bench, 960, "train", offset)
    if is_drawn:
        generator = random.Random(f"coin {bench.seed}")
        rows = [{"words": row["words"], "tags": generator.choices(TAGS, k=len(row["words"]))} for row in rows]
    model, method = bench.base(), Tagging(labels=TAGS, causal=causal)
    target = bench.fit(
        model, bench.made("tags", rows), tune="full", objective=method, lr=lr, steps=steps, batch_size=16
    ).target
    assert isinstance(target, LabelTarget)
    encoder = Encoder.of(model, 64)
    asked = bench.made("tags", contents(bench, 200, "test", offset))
    sequences = [method.encode(row, encoder)[0][0] for row in asked]
    right = []
    model.module.eval()
    with torch.no_grad():
        for sequence in sequences:
            logits_LK, labels_L = target.head.logits(model, pack([Example((sequence,))]))
            right += (logits_LK.argmax(1) == labels_L)[1:-1].tolist()
    return 100 * sum(right) / len(right)


def measure(bench: Bench) -> dict[str, float]:
    return {
        "next letter, open": accuracy(bench, causal=False, offset=1),
        "next letter, causal": accuracy(bench, causal=True, offset=1),
        "letter before, causal": accuracy(bench, causal=True, offset=-1),
        "a coin's tags, open": accuracy(bench, causal=False, offset=1, is_drawn=True),
        "chance": 50.0,
    }


STUDY = Study(
    claim="Without the causal mask a decoder tags words far better, since a tag hangs on what follows as well "
    "(LS-unLLaMA, arXiv:2310.01208).",
    unit="accuracy of tags in per cent, more is better",
    measure=measure,
    contrasts=(
        Contrast("open attention sees what follows", "next letter, open", "next letter, causal", "above"),
        Contrast("causal attention sees what precedes", "letter before, causal", "chance", "above"),
        Contrast("causal attention does not see what follows", "next letter, causal", "chance", "none"),
        Contrast("a coin's tags teach nothing", "a coin's tags, open", "chance", "none"),
    ),
    finding="As claimed: with the mask a tag that hangs on the next letter stays at chance, without it the tag is "
    "learnt to 95 % in the mean after 90 steps, the base having only ever looked back. All at lr 1e-3, the best of "
    "1e-3 and 4e-3 on one seed for open attention (2e-3 was not enough in 60 steps).",
)
