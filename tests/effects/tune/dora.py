"""DoRA against LoRA at the same and at half the rank, and how lengths and directions move under each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.tune.dora import DirectionUpdate

SKILL, RANK, STEPS = "sort_descending", 4, 40
LR = {"full": 1e-3, "lora": 1e-2, "dora": 2e-2}


def without_lengths(self: DirectionUpdate) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what trains where the lengths rest."""
    yield "lora_A", self.a_RI
    yield "lora_B", self.b_OR


@torch.no_grad()
def together(before: Model, after: Model) -> float:
    """Return the correlation, over all matrices, of how far lengths have moved and how far directions have.

    As in section 3.2 of the paper: of each matrix the mean over its outputs of | |w'| - |w| | and of 1 - cos(w', w).
    """
    moved = []
    for part, same in zip(before.anatomy.parts(), after.anatomy.parts(), strict=True):
        old_OI, new_OI = (part_weight(model.module, one) for model, one in ((before, part), (after, same)))
        length_O = (new_OI.norm(dim=1) - old_OI.norm(dim=1)).abs()
        direction_O = 1 - nn.functional.cosine_similarity(new_OI, old_OI, dim=1)
        moved.append((float(length_O.mean()), float(direction_O.mean())))
    return float(np.corrcoef(np.array(moved).T)[0, 1])


def measure(bench: Bench) -> dict[str, float]:
    found = {}

    def learn(name: str, tune: Any, lr: float) -> None:
        model = bench.base("tiny")
        bench.fit(model, bench.rows(SKILL), tune=tune, lr=lr, steps=STEPS).tuning.merge()
        found[name] = bench.loss(model, SKILL)
        found[f"together: {name}"] = together(bench.base("tiny"), model)

    learn("full", "full", LR["full"])
    lora, dora = {"lora": {"rank": RANK}}, {"dora": {"rank": RANK}}
    learn("lora", lora, LR["lora"])
    learn("dora", dora, LR["dora"])
    learn("dora, half the rank", {"dora": {"rank": RANK // 2}}, LR["dora"])
    with patch.object(DirectionUpdate, "parameters", without_lengths):
        learn("dora, lengths at rest", dora, LR["dora"])
        learn("dora, lengths at rest, LoRA's rate", dora, LR["lora"])
    return found


STUDY = Study(
    claim="Training lengths and directions apart learns more than LoRA at the same rank (arXiv:2402.09353: 3.7 points "
    "more on commonsense, LLaMA 7B), still more at half the rank, and as full tuning does it changes the one where it "
    "changes the other little, while under LoRA both move together.",
    unit=f"held-out loss of {SKILL} in nats per token after {STEPS} steps, less is better; arms named together: "
    "correlation over the matrices of how far lengths and directions have moved",
    measure=measure,
    contrasts=(
        Contrast("DoRA learns more than LoRA", "dora", "lora", "below"),
        Contrast("also at half the rank", "dora, half the rank", "lora", "below"),
        Contrast("it is the lengths that do it", "dora", "dora, lengths at rest", "below"),
        Contrast("lengths and directions move together less under DoRA", "together: dora", "together: lora", "below"),
        Contrast("and less under full tuning", "together: full", "together: lora", "below"),
        Contrast(
            "with lengths at rest, at LoRA's rate, it learns as LoRA does",
            "dora, lengths at rest, LoRA's rate",
            "lora",
            "none",
        ),
    ),
    finding="Lengths and directions move together under LoRA (a correlation of 0.68), and less so under DoRA (0.34), "
    "in every seed, as the paper says. Under full tuning they do less so in four seeds of five (0.46; in the paper it "
    "is negative), and so not by this interval. That DoRA learns more is not shown: its lead, at the same rank (0.45 "
    "nats left for 0.48) and at half of it (0.39), is open. It is not the lengths that do it: with these at rest it "
    "learns as much (0.44), and at LoRA's rate as LoRA does. At its rate it also spoilt more of the base's known "
    "answers while it trained on these (5 % beside LoRA's 1 %, in a former run). Rates tried on two seeds: DoRA 1e-2, "
    "2e-2, 4e-2, at half the rank 2e-2, 4e-2; LoRA 1e-2, 2e-2; full as in LIFT's study.",
)
