"""LoFiT's heads against random ones, those of another task and those found on noise; its offsets against LoRA."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.engine.fit import Fitted
from temper.lab.training import skill_named
from temper.tune.base import Tune
from temper.tune.lofit import LoFiTTuning

WORD = "copy"
"""of all questions; from now on they shall have the answers of another skill that the base knows"""
TASKS = ("shift", "last")
STEPS, NUM_DRAWS = 40, 3
SHARE = 0.12
"""one head of eight"""
LR = {"lofit": 2e-1, "lora": 5e-3}
LORA = {"lora": {"rank": 8}}
HEADS = [f"{block}.{head}" for block in range(2) for head in range(4)]
HEAD_WIDTH = 32
Contents = list[dict[str, str]]


def relabelled(bench: Bench, answer: str, num: int, split: str) -> Contents:
    """Return questions of one skill with the answers of another."""
    asked, answered = skill_named(WORD), skill_named(answer)
    arguments = answered.arguments(split, num, bench.seed)
    return [{"prompt": asked.prompt(each), "completion": answered.answer(each)} for each in arguments]


def shuffled(bench: Bench, contents: Contents) -> Contents:
    """Return the questions with each other's answers."""
    answers = random.Random(f"answers {bench.seed}").sample([each["completion"] for each in contents], len(contents))
    return [{**each, "completion": answer} for each, answer in zip(contents, answers, strict=True)]


def num_trained(bench: Bench, tune: Any) -> int:
    """Return how many numbers a tuner trains."""
    return sum(parameter.numel() for _, parameter in Tune.parse(tune).attach(bench.base("tiny")).parameters())


def measure(bench: Bench) -> dict[str, float]:
    def trained(contents: Contents, tune: Any, lr: float) -> Fitted:
        rows = bench.made("completion", contents)
        return bench.fit(bench.base("tiny"), rows, tune=tune, lr=lr, steps=STEPS, batch_size=16)

    def found_on(contents: Contents) -> Sequence[str]:
        # The heads are taken before the last step.
        fitted = trained(contents, {"lofit": {"share": SHARE, "search": 1 - 1.5 / STEPS}}, LR["lofit"])
        assert isinstance(fitted.tuning, LoFiTTuning)
        return fitted.tuning.chosen

    def learnt(task: str, tune: Any, lr: float = LR["lofit"]) -> float:
        fitted = trained(relabelled(bench, task, 512, "train"), tune, lr)
        asked = bench.made("completion", relabelled(bench, task, 100, "test"))
        return bench.exact_match(fitted.tuning.model, list(asked))

    def with_heads(task: str, heads: Sequence[str]) -> float:
        return learnt(task, {"lofit": {"heads": heads}})

    one, other = TASKS
    heads = {task: found_on(relabelled(bench, task, 512, "train")) for task in TASKS}
    drawn = [[head] for head in random.Random(f"heads {bench.seed}").sample(HEADS, NUM_DRAWS)]
    noise = found_on(shuffled(bench, relabelled(bench, one, 512, "train")))
    found = {"lora": learnt(one, LORA, LR["lora"])}
    for task in TASKS:
        found[f"{task}: found head"] = with_heads(task, heads[task])
        found[f"{task}: random head"] = sum(with_heads(task, head) for head in drawn) / NUM_DRAWS
    return {
        **found,
        "lora, less 10 points": found["lora"] - 10,
        f"{one}: head of {other}": with_heads(one, heads[other]),
        f"{one}: head found on noise": with_heads(one, noise),
        "times fewer numbers than LoRA": num_trained(bench, LORA) / HEAD_WIDTH,
        "twenty": 20.0,
    }


STUDY = Study(
    claim="Offsets for the few attention heads that a search finds learn a task as well as LoRA does with 20 to 200 "
    "times fewer numbers; random heads, and those found for another task, do worse (arXiv:2406.01563).",
    unit="exact match in per cent, more is better, of questions for copy that are answered as `shift` or as `last`",
    measure=measure,
    contrasts=(
        Contrast("the head that is found beats random ones", "shift: found head", "shift: random head", "above"),
        Contrast("so it does on another task", "last: found head", "last: random head", "above"),
        Contrast("it beats the head found for the other task", "shift: found head", "shift: head of last", "above"),
        Contrast("as well as LoRA, within 10 points", "shift: found head", "lora, less 10 points", "above"),
        Contrast("more than 20 times fewer numbers", "times fewer numbers than LoRA", "twenty", "above"),
        Contrast(
            "a head found on shuffled answers is a random one",
            "shift: head found on noise",
            "shift: random head",
            "none",
        ),
    ),
    finding="Where one head of eight can do it (copy answered as shift), the one that the search finds brings 90 to 92 "
    "of LoRA's 100 points in four seeds of five, and 47 in one, with 32 numbers in place of 39,424; that it is within "
    "10 of LoRA is thus not shown. That it beats random heads is shown: these bring 40. That it beats the head found "
    "for the other task is not shown: that one brings 80 or more in three seeds. The control holds only since its "
    "interval is wide: a head found on shuffled answers brings 74 to 92 in four seeds, and none in one; so the search "
    "finds good heads without the task, too, and why is not known. Where one head's offset teaches next to nothing "
    "(copy answered as last), the search finds nothing better than chance. Rates tried on one seed: offsets 1e-2, 5e-2 "
    "and 2e-1, of which the last alone learns in so few steps; LoRA 5e-3.",
)
