"""LISA against full tuning and against training the same number of fixed blocks."""

from __future__ import annotations

from typing import Any

from effects.bench import Bench
from effects.study import Contrast, Study


def measure(bench: Bench) -> dict[str, float]:
    def learnt(tune: Any, lr: float) -> float:
        model = bench.base()
        bench.fit(model, bench.rows("reverse"), tune=tune, lr=lr)
        return bench.loss(model, "reverse")

    return {
        "base": bench.loss(bench.base(), "reverse"),
        "lisa": learnt({"lisa": {}}, 2e-3),
        "full": learnt("full", 2e-3),
        "full again": learnt("full", 2e-3),
    }


STUDY = Study(
    claim="LISA learns as full tuning does (arXiv:2403.17919).",
    unit="held-out loss of reverse in nats per token, less is better",
    measure=measure,
    contrasts=(
        Contrast("LISA learns", "lisa", "base", "below"),
        Contrast("full learns", "full", "base", "below"),
        Contrast("the same training twice", "full again", "full", "none"),
    ),
)
