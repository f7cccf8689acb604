"""AdamW with averages of 8 bits against those of 32, and with the paper's two ideas taken out."""

from __future__ import annotations

from unittest.mock import patch

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.models import eight_bits

SKILL, STEPS, LR = "sort_descending", 60, 1e-3


def evenly(is_signed: bool) -> tuple[float, ...]:
    return tuple(place / 127 for place in range(-127, 128)) if is_signed else tuple(place / 255 for place in range(256))


def measure(bench: Bench) -> dict[str, float]:
    def learnt(optimizer: object) -> float:
        model = bench.trained(SKILL, "tiny", tune="full", optimizer=optimizer, lr=LR, steps=STEPS)
        return bench.loss(model, SKILL)

    found = {"adamw": learnt("adamw"), "adamw_8bit": learnt("adamw_8bit")}
    found["a scale for each tensor"] = learnt({"adamw_8bit": {"block": 2**24}})
    with patch.object(eight_bits, "levels", evenly):
        found["even levels"] = learnt("adamw_8bit")
        found["even levels, a scale for each tensor"] = learnt({"adamw_8bit": {"block": 2**24}})
    return found


STUDY = Study(
    claim="Adam with averages of 8 bits, in blocks and on levels that are dense near zero, learns what Adam with "
    "averages of 32 bits learns; with evenly spaced levels, or one scale for a tensor, it does not "
    "(arXiv:2110.02861).",
    unit=f"held-out loss of {SKILL} in nats per token after {STEPS} steps of full tuning, less is better",
    measure=measure,
    contrasts=(
        Contrast("with evenly spaced levels it learns less", "even levels", "adamw_8bit", "above"),
        Contrast("with one scale for a tensor it learns less", "a scale for each tensor", "adamw_8bit", "above"),
        Contrast("blocks help evenly spaced levels", "even levels, a scale for each tensor", "even levels", "above"),
        Contrast("in 8 bits it learns other than in 32", "adamw_8bit", "adamw", "none"),
    ),
    finding="In 8 bits it learns what it learns in 32, to 0.001 nats. Of the two ideas either will do here: with even "
    "levels in blocks, or one scale for a tensor on the paper's levels, nothing is lost. With neither it learns less "
    "in every seed.",
)
