"""Dynamic batch loading while a pruned model recovers its skills: by its domains, and by domains shuffled together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.models.model import Model

SKILLS = ("copy", "shift", "sort", "swap")
PRUNED = 0.75
"""share of each MLP's channels that is taken out"""
STEPS, EVERY = 40, 5
LR = 1e-3


def pruned(bench: Bench) -> Model:
    """Return `tiny` without some channels of its MLPs: in and out 0, so that no gradient brings them back."""
    model = bench.base("tiny")
    with torch.no_grad():
        for block in model.module.model.layers:
            num = block.mlp.down_proj.in_features
            gone = torch.from_numpy(bench.generator.permutation(num)[: round(PRUNED * num)])
            for matrix in (block.mlp.gate_proj, block.mlp.up_proj):
                matrix.weight[gone] = 0
            block.mlp.down_proj.weight[:, gone] = 0
    model.is_changed = True
    return model


def measure(bench: Bench) -> dict[str, float]:
    sources = [bench.rows(skill, 512) for skill in SKILLS]

    def losses(model: Model) -> NDArray[np.float64]:
        return np.array([bench.loss(model, skill, 80) for skill in SKILLS])

    whole = losses(bench.base("tiny"))
    start = pruned(bench)
    dynamic = {"dynamic_loading": {"references": whole.tolist(), "every_steps": EVERY, "num_validation": 32}}

    def recovered(mix: Any, data: list[Rows]) -> NDArray[np.float64]:
        return losses(bench.tuned(start, data, mix=mix, lr=LR, steps=STEPS, batch_size=16)) - whole

    fixed, blurred = {"fixed": {"weights": [1, 1, 1, 1]}}, bench.blurred(sources)
    even, loaded = recovered(fixed, sources), recovered(dynamic, sources)
    return {
        "mean: pruned": float((losses(start) - whole).mean()),
        "mean: even": float(even.mean()),
        "mean: dynamic": float(loaded.mean()),
        "mean: even, shuffled sources": float(recovered(fixed, blurred).mean()),
        "mean: dynamic, shuffled sources": float(recovered(dynamic, blurred).mean()),
        "between domains: even": float(even.std()),
        "between domains: dynamic": float(loaded.std()),
    }


STUDY = Study(
    claim="A pruned model that draws more from domains that lag behind their reference losses reaches these at about "
    "the same time in all, and better in the mean, than one that draws in fixed proportion (arXiv:2310.06694; the "
    "references here are the losses before pruning).",
    unit="held-out loss above the unpruned model's in nats per token, the mean over four skills or the standard "
    "deviation between them, less is better",
    measure=measure,
    contrasts=(
        Contrast("training recovers", "mean: even", "mean: pruned", "below"),
        Contrast("dynamic loading recovers more", "mean: dynamic", "mean: even", "below"),
        Contrast("and brings the domains closer", "between domains: dynamic", "between domains: even", "below"),
        Contrast(
            "the same rule on sources whose rows are shuffled together",
            "mean: dynamic, shuffled sources",
            "mean: even, shuffled sources",
            "none",
        ),
    ),
    finding="Not shown: the domains come closer in four seeds of five, 0.05 nats apart in place of 0.06, which is what "
    "the rule is for, but its interval holds 0; the mean is the same (0.07 either way). The control fails: by domains "
    "shuffled together the rule has 0.02 nats less, in every seed; why is not known, so that differences of this size "
    "say nothing of the rule. Three quarters of the MLPs' channels were taken out; with a half, on two seeds in "
    "development, the mean was the same, too. All at lr 1e-3, the only one tried, and weights updated every 5 of 40 "
    "steps, 4 domains of 512 rows each, drawn evenly at first.",
)
