"""LESS: rows for one skill out of a pool of five, by 16 examples of what is wanted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.rows import Rows
from temper.select.base import Pool, best
from temper.select.less import Less
from temper.signals.scores import Scores

POOL = {"reverse": 40, "rotate": 90, "sort_descending": 90, "copy": 90, "swap": 90}
KEEP = 0.1


def measure(bench: Bench) -> dict[str, float]:
    every = [row for skill, num in POOL.items() for row in bench.rows(skill, num)]
    pool = Rows.from_rows(every, f"pool {bench.seed}")
    target = {"lab": {"skill": "reverse", "num": 16, "seed": 1000 + bench.seed}}
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder)
        some = bench.generator.permutation(len(every))[:64]
        bench.fit(
            bench.base("tiny"),
            Rows.from_rows([every[place] for place in some], "warm-up"),
            folder=warm,
            tune={"lora": {"rank": 4}},
            lr=5e-3,
            steps=16,
            batch_size=16,
            snapshots=2,
        )
        (warm / "stage.json").write_text(json.dumps({"name": "warm", "models": ["base"]}))
        less = Less.model_validate({"trajectory": "warm", "target": [target], "keep": KEEP, "dimension": 512})
        selection = less.select(
            Pool(
                pool,
                lambda rows: Scores(rows, warm / "cache"),
                lambda _: bench.base("tiny"),
                lambda _: warm,
                lambda source: source.open("train", warm),
                "base",
                bench.seed,
            )
        )

    def loss(kept: Iterable[int]) -> float:
        rows = Rows.from_rows([every[place] for place in kept], "kept")
        # The same rate for every arm; 1e-3 did better than 2e-3 on reverse in development.
        return bench.loss(bench.tuned("tiny", rows, lr=1e-3, steps=30), "reverse", 100)

    shuffled_E = np.random.default_rng(bench.seed).permutation(selection.score_E)
    drawn = np.sort(bench.generator.permutation(len(every))[: len(selection.kept)])
    return {
        "less": loss(selection.kept),
        "random": loss(drawn),
        "whole pool": loss(range(len(every))),
        "less, shuffled scores": loss(best(shuffled_E, KEEP)),
    }


STUDY = Study(
    claim="A small share of a pool, chosen by LESS with a few examples of the target, trains the target better than a "
    "random share, and often better than the whole pool (arXiv:2402.04333, 5 %; here 40 of 400 rows, as many as the "
    "pool has of the target's skill, and the same steps for all).",
    unit="held-out loss of reverse in nats per token, less is better",
    measure=measure,
    contrasts=(
        Contrast("LESS beats a random tenth", "less", "random", "below"),
        Contrast("LESS beats the whole pool", "less", "whole pool", "below"),
        Contrast("a tenth by shuffled scores", "less, shuffled scores", "random", "none"),
    ),
    finding="LESS leaves 2.0 nats where a random tenth leaves 2.5: less in four seeds of five, so that this is not "
    "shown. It is below a tenth by shuffled scores (2.7) in every seed. That it beats the whole pool (1.3) is "
    "contradicted, in every seed: in the same 30 steps its 40 rows come up 24 times each and are learnt by heart, "
    "where the pool's other skills, of the same letters, likely teach something of the target as well. What LESS chose "
    "was not looked at. All at lr 1e-3.",
)
