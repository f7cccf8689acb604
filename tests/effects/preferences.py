"""What the studies of preferences share: a policy that errs, and pairs of its answers ranked by their errors.

The policy is a base that knows `copy`, trained on answers each of whose letters is spoilt with probability `ERRS`.
Two answers to a question are drawn from that same noise, so that they are what the policy itself might write; the
one with fewer errors is chosen (of equals neither: it is drawn again). The chosen answer is thus often wrong as well,
and who imitates it does not become better than it is. What counts is how often a sampled answer is right: the
probability that the policy gives to the right one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from effects.bench import Bench
from temper.data.rows import Rows
from temper.lab.skill import LETTERS
from temper.lab.training import skill_named
from temper.models.model import Model

SKILL = "copy"
ERRS = 0.35
"""probability that a letter of an answer is spoilt"""


@dataclass(frozen=True)
class Pair:
    """Two answers to a question."""

    prompt: str
    right: str
    chosen: str
    rejected: str


def questions(bench: Bench, num: int, split: str) -> list[tuple[str, str]]:
    """Return prompts with their right answers."""
    skill = skill_named(SKILL)
    return [(skill.prompt(word), skill.answer(word)) for word in skill.arguments(split, num, bench.seed)]


def spoilt(answer: str, generator: random.Random) -> str:
    """Return an answer as the policy writes it."""
    return "".join(
        generator.choice([other for other in LETTERS if other != letter]) if generator.random() < ERRS else letter
        for letter in answer
    )


def errors(answer: str, right: str) -> int:
    """Count the letters in which an answer is wrong."""
    return sum(one != other for one, other in zip(answer, right, strict=True))


def policy(bench: Bench, longest_tail: int = 0) -> Model:
    """Return the policy from which preferences are learnt; it ends each answer with a random number of `+` signs."""
    generator = random.Random(f"policy {bench.seed}")
    rows = [
        {"prompt": prompt, "completion": spoilt(right, generator) + "+" * generator.randint(0, longest_tail)}
        for prompt, right in questions(bench, 640, "train")
    ]
    return bench.tuned("nano", bench.made("completion", rows), lr=1e-3, steps=40, batch_size=16)


def pairs(bench: Bench, num: int, split: str = "train", flipped: float = 0.0) -> list[Pair]:
    """Return ranked pairs of answers, a share of them the wrong way round."""
    generator = random.Random(f"pairs {bench.seed} {split}")
    found = []
    for prompt, right in questions(bench, num, split):
        one, other = spoilt(right, generator), spoilt(right, generator)
        while errors(one, right) == errors(other, right):
            one, other = spoilt(right, generator), spoilt(right, generator)
        if errors(one, right) > errors(other, right):
            one, other = other, one
        # Drawn whether used or not: the pairs are the same at every share.
        if generator.random() < flipped:
            one, other = other, one
        found.append(Pair(prompt, right, one, other))
    return found


def equals(bench: Bench, num: int) -> list[Pair]:
    """Return held-out pairs of answers with equally many errors, the first in the alphabet in place of the chosen."""
    generator = random.Random(f"equals {bench.seed}")
    found = []
    for prompt, right in questions(bench, num, "test"):
        one, other = spoilt(right, generator), spoilt(right, generator)
        while one == other or errors(one, right) != errors(other, right):
            one, other = spoilt(right, generator), spoilt(right, generator)
        found.append(Pair(prompt, right, *sorted((one, other))))
    return found


def both_ways(ranked: Iterable[Pair]) -> list[Pair]:
    """Return every pair as it is and the wrong way round: preferences that say nothing."""
    turned = ((pair, replace(pair, chosen=pair.rejected, rejected=pair.chosen)) for pair in ranked)
    return [pair for two in turned for pair in two]


def preference_rows(bench: Bench, ranked: Iterable[Pair]) -> Rows:
    """Return pairs as rows."""
    return bench.made("preference", [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in ranked])


def chosen_rows(bench: Bench, ranked: Iterable[Pair]) -> Rows:
    """Return the chosen answers alone, to be imitated."""
    return bench.made("completion", [{"prompt": p.prompt, "completion": p.chosen} for p in ranked])


def right_share(bench: Bench, model: Model, num: int = 200) -> float:
    """Return in per cent how often a sampled answer to a held-out question is right: its mean probability."""
    logprobs = bench.answer_logprobs(model, questions(bench, num, "test"))
    return 100 * float(np.mean([np.exp(each.sum()) for each in logprobs]))


def gained(bench: Bench, model: Model, start: Model, ranked: Sequence[Pair]) -> NDArray[np.float64]:
    """Return by how much each chosen answer has gained on the rejected one since the start, in nats per token."""
    gains = []
    for side in ("chosen", "rejected"):
        asked = [(pair.prompt, getattr(pair, side)) for pair in ranked]
        now, before = (bench.answer_logprobs(each, asked) for each in (model, start))
        gains.append(np.array([one.mean() - other.mean() for one, other in zip(now, before, strict=True)]))
    return gains[0] - gains[1]


def rewarded_right(bench: Bench, model: Model, start: Model, ranked: Sequence[Pair]) -> float:
    """Return the share of pairs in per cent whose chosen answer has gained more than the other."""
    return 100 * float((gained(bench, model, start, ranked) > 0).mean())
