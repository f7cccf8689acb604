"""DCO beside the plain likelihood, after many passes over few questions each of which has one of four right answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.lab.training import skill_named

ASKED, WAYS = "reverse", ("copy", "shift", "sort", "swap")
"""the word of a question, which the base has never seen, and four known skills, one of which by chance is meant"""
FEW, STEPS, FEWER = 64, 100, 20
TRIES = 64
LR = 1e-3


def coverage(probabilities: NDArray[np.float64], tries: int) -> float:
    """Return in per cent how often one answer at least of so many is right: exact, nothing is sampled."""
    return 100 * float(-np.expm1(tries * np.log1p(-probabilities.clip(max=1 - 1e-9))).mean())


def questions(bench: Bench, num: int, split: str) -> list[tuple[str, str]]:
    """Return questions with the answers that one of the skills gives, by chance."""
    asked, ways = skill_named(ASKED), [skill_named(way) for way in WAYS]
    chance = random.Random(f"ways {split} {bench.seed}")
    words = asked.arguments(split, num, bench.seed)
    return [(asked.prompt(word), chance.choice(ways).answer(word)) for word in words]


def measure(bench: Bench) -> dict[str, float]:
    train, test = questions(bench, FEW, "train"), questions(bench, 300, "test")
    rows = bench.made("completion", [{"prompt": prompt, "completion": answer} for prompt, answer in train])
    found = {}

    def learn(name: str, objective: Any, steps: int = STEPS) -> None:
        model = bench.tuned("tiny", rows, objective=objective, lr=LR, steps=steps, batch_size=16)
        probabilities = np.array([np.exp(each.sum()) for each in bench.answer_logprobs(model, test)])
        found[f"1 try: {name}"] = coverage(probabilities, 1)
        found[f"{TRIES} tries: {name}"] = coverage(probabilities, TRIES)

    learn("sft", "sft")
    learn("sft, fewer steps", "sft", FEWER)
    learn("dco", {"dco": {"tries": TRIES}})
    learn("dco for 1 try", {"dco": {"tries": 1}})
    return found


STUDY = Study(
    claim="The longer cross-entropy trains, the surer the model and the rarer a right answer among many tries; DCO for "
    "as many tries limits the confidence, and is right more often among them (arXiv:2502.07154).",
    unit=f"held-out questions to which one answer at least of 1 or of {TRIES} is right, in per cent, more is better",
    measure=measure,
    contrasts=(
        Contrast("long training costs 64 tries", "64 tries: sft", "64 tries: sft, fewer steps", "below"),
        Contrast("DCO is right more often among 64 tries", "64 tries: dco", "64 tries: sft", "above"),
        Contrast("so it is beside fewer steps", "64 tries: dco", "64 tries: sft, fewer steps", "above"),
        Contrast("which costs the single try", "1 try: dco", "1 try: sft", "below"),
        Contrast("DCO for 1 try is cross-entropy", "64 tries: dco for 1 try", "64 tries: sft", "none"),
    ),
    finding="DCO for 64 tries is right more often among them than cross-entropy, by 3 points of 15, and pays with the "
    "single try, as the paper says; DCO for 1 try is cross-entropy. That long training costs cross-entropy tries is "
    "shown, in every seed, by 5 points of 20. That DCO does better than stopping early is not: in four seeds it does "
    "worse. The questions have four right answers of which one is meant by chance, so that to be sure is to be wrong "
    "three times in four. In earlier trials, where there is one right answer (reverse, 64 rows, one seed), longer "
    "training made a right answer likelier among 64 tries, too, from 80 to 95 per cent, and DCO had 90; with answers "
    "spoilt at random (one seed) DCO lost as well, likely because it looks away from what is learnt and at what is "
    "spoilt. All at lr 1e-3.",
)
