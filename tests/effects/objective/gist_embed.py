"""A guide that finds false negatives against none, and against one whose word is about other pairs."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.encode import Encoder
from temper.data.example import Example
from temper.data.pack import pack
from temper.lab.skill import LETTERS
from temper.models.model import Model
from temper.objectives.gist_embed import GuidedEmbedding
from temper.signals.forward import hidden_states
from temper.signals.pooling import pool

MEANINGS = 12
"""few, so that of 64 pairs of a batch five mean what an anchor means"""


class Unguided(GuidedEmbedding):
    """The same loss without its guide: every stranger is a negative."""

    def losses(self, ours: dict[str, Tensor], guides: dict[str, Tensor]) -> Tensor:
        apart_PP = torch.eye(len(ours["anchor"]))
        return super().losses(ours, {"anchor": apart_PP, "positive": apart_PP, "negative": guides["negative"]})


class Dealt(GuidedEmbedding):
    """The same loss with as many strangers left out, but of other pairs than the guide meant."""

    def losses(self, ours: dict[str, Tensor], guides: dict[str, Tensor]) -> Tensor:
        order_P = torch.randperm(len(guides["anchor"]), generator=torch.Generator().manual_seed(0))
        sides = {role: guides[role][order_P] for role in ("anchor", "positive")}
        return super().losses(ours, {**sides, "negative": guides["negative"]})


def texts(bench: Bench, num: int, split: str) -> list[tuple[str, int]]:
    """Return texts with what they mean: their first and last letters together; what stands between means nothing."""
    ends = random.Random(f"meanings {bench.seed}").sample(
        [one + other for one in LETTERS for other in LETTERS], MEANINGS
    )
    generator = random.Random(f"{split} {bench.seed}")
    found = []
    for _ in range(num):
        meaning = generator.randrange(MEANINGS)
        middle = "".join(generator.choices(LETTERS, k=generator.randint(2, 4)))
        found.append((ends[meaning][0] + middle + ends[meaning][1], meaning))
    return found


def found_first(bench: Bench, model: Model) -> float:
    """Return how often the nearest of 300 other texts means the same, in per cent."""
    asked = texts(bench, 300, "test")
    encoder = Encoder.of(model, 64)
    batch = pack([Example((encoder.read(text),)) for text, _ in asked])
    model.module.eval()
    with torch.no_grad():
        vectors_BD = F.normalize(pool(hidden_states(model, batch), batch, "mean"), dim=1)
    meanings_B = torch.tensor([meaning for _, meaning in asked])
    nearest_B = (vectors_BD @ vectors_BD.t()).fill_diagonal_(-1).argmax(1)
    return 100 * float((meanings_B[nearest_B] == meanings_B).float().mean())


def measure(bench: Bench) -> dict[str, float]:
    known = texts(bench, 1280, "train")
    labelled = bench.made("class", [{"text": text, "class": str(meaning)} for text, meaning in known])
    classes = {"classify": {"labels": [str(meaning) for meaning in range(MEANINGS)], "pooling": "mean"}}
    guide = bench.tuned("nano", labelled, objective=classes, lr=2e-3, steps=50)

    def learnt(method: type[GuidedEmbedding]) -> float:
        generator = random.Random(f"pairs {bench.seed}")
        rows: list[dict[str, Any]] = []
        for text, meaning in known[:640]:
            others = [other for other, own in known if own == meaning and other != text]
            rows.append({"anchor": text, "positive": generator.choice(others)})
        how: dict[str, Any] = {"objective": method.model_construct(guide="the/guide"), "lr": 1e-3, "steps": 10}
        model = bench.tuned("nano", bench.made("pair", rows), {"the/guide": guide}, batch_size=64, **how)
        return found_first(bench, model)

    return {
        "base": found_first(bench, bench.base()),
        "guide": found_first(bench, guide),
        "no guide": learnt(Unguided),
        "gist_embed": learnt(GuidedEmbedding),
        "guide's word dealt": learnt(Dealt),
    }


STUDY = Study(
    claim="Leaving out strangers that a guide finds nearer than the pair itself gives better embeddings than taking "
    "every stranger of the batch for a negative (arXiv:2402.16829: higher MTEB averages at every size).",
    unit="how often the nearest of 300 texts means the same, in per cent, more is better",
    measure=measure,
    contrasts=(
        Contrast("embeddings are learnt", "no guide", "base", "above"),
        Contrast("a guide makes them better", "gist_embed", "no guide", "above"),
        Contrast("not with its word dealt to other pairs", "guide's word dealt", "no guide", "none"),
    ),
    finding="Not shown: with a guide that leaves out false negatives, of which a batch here is rich (twelve meanings "
    "among 64 pairs), four seeds of five find more after ten steps, by 1 to 6 points, and one finds 11 less; why is "
    "not known. With as many strangers left out of other pairs' places it is as without a guide. In an earlier trial, "
    "after 20 steps, the first seed had 96 against 95 per cent: by then little is left for a guide. All at lr 1e-3, "
    "the only one tried.",
)
