"""A patch learnt on an old base, put onto a base that was trained further."""

from __future__ import annotations

import tempfile
from pathlib import Path

from effects.bench import Bench
from effects.merging import Change, change_of, shuffled
from effects.study import Contrast, Study
from temper.delta.base import Delta, read_delta
from temper.delta.dense import DenseDelta
from temper.delta.port import port
from temper.models.model import Model

EVOLUTION = ("copy", "sort", "swap", "shift", "rotate")


def measure(bench: Bench) -> dict[str, float]:
    changes = {"near": _evolution(bench, 5e-5), "far": _evolution(bench, 3e-4)}

    def evolved(how: str) -> Model:
        model = bench.base("tiny")
        DenseDelta(changes[how]).apply(model, keep=False)
        return model

    def patch_of(model: Model) -> Delta:
        fitted = bench.fit(model, bench.rows("reverse", 512), tune={"lora": {"rank": 8}}, lr=5e-3, steps=30)
        with tempfile.TemporaryDirectory() as folder:
            fitted.tuning.save(Path(folder))
            return read_delta(Path(folder) / "delta")

    def accuracy(how: str, patch: Delta) -> float:
        model = evolved(how)
        port(patch, model).apply(model, keep=False)
        return bench.accuracy(model, "reverse")

    patch = patch_of(bench.base("tiny"))
    trained = accuracy("near", patch_of(evolved("near")))
    placebo = shuffled({name: patch.update(name) for name in patch.names()}, bench.seed)
    return {
        "near base": bench.accuracy(evolved("near"), "reverse"),
        "near base, old patch": accuracy("near", patch),
        "near base, patch trained on it": trained,
        "near base, patch trained on it, less 10 points": trained - 10,
        "near base, shuffled patch": accuracy("near", DenseDelta(placebo)),
        "far base, old patch": accuracy("far", patch),
    }


def _evolution(bench: Bench, lr: float) -> Change:
    """Return what further training, on old skills and a new one, does to the base: the further, the larger the rate."""
    model = bench.base("tiny")
    bench.fit(model, bench.rows(EVOLUTION, 256), tune="full", lr=lr, steps=30)
    return change_of(model, bench.base("tiny"))


STUDY = Study(
    claim="A low-rank patch learnt on an old base works on the base as it was trained further, without training: "
    "comparable to LoRA on the new base (PortLLM, arXiv:2410.10870; whole differences: arXiv:2503.20110).",
    unit="exact match of the patch's skill, reverse, in per cent, more is better",
    measure=measure,
    contrasts=(
        Contrast("the old patch teaches the new base", "near base, old patch", "near base", "above"),
        Contrast(
            "as good as a patch trained there, within 10 points",
            "near base, old patch",
            "near base, patch trained on it, less 10 points",
            "above",
        ),
        Contrast(
            "the further the base has moved, the less is left", "near base, old patch", "far base, old patch", "above"
        ),
        Contrast("a shuffled patch", "near base, shuffled patch", "near base", "none"),
    ),
    finding="On a base that has moved little the old patch brings 52 of the 63 points that a patch trained there "
    "brings, and is within 10 in two seeds of five, so that this is open; on one that has moved six times as far (by "
    "learning rate) it brings 15. What the paper assumes, that the base moves little beside the patch, is what it "
    "depends on.",
)
