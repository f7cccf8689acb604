"""A behaviour learnt by a small model, on top of skills that only a large one has."""

from __future__ import annotations

from dataclasses import replace

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.example import Row
from temper.data.rows import Rows
from temper.decode.base import Decode
from temper.models.model import Model

SHARED = ("copy", "shift", "duplicate")
"""what both bases know; the small one, nano, knows nothing else"""
LARGE_ONLY = ("sort", "swap")
SIGN = "5"
"""what every answer of the tuned behaviour ends with"""


def signed(rows: list[Row]) -> list[Row]:
    return [replace(row, content={**row.content, "completion": str(row.content["completion"]) + SIGN}) for row in rows]


def measure(bench: Bench) -> dict[str, float]:
    plain = list(bench.rows(SHARED, 256))
    test = signed([row for skill in LARGE_ONLY for row in bench.rows(skill, 50, "test")])

    def tuned(base: str, rows: list[Row], name: str) -> Model:
        # 1e-3 did better than 3e-4 on the small model's own skills in development, and is taken for both.
        return bench.tuned(base, Rows.from_rows(rows, name), lr=1e-3, steps=40)

    def emulated(small: Model) -> Model:
        return Decode.parse({"emulated_fine_tuning": {"beta": 1.0}}).join(
            [bench.base("tiny"), small, bench.base("nano")]
        )

    small = tuned("nano", signed(plain), "signed")
    return {
        "large base": bench.exact_match(bench.base("tiny"), test),
        "small, tuned": bench.exact_match(small, test),
        "emulated": bench.exact_match(emulated(small), test),
        "large, tuned": bench.exact_match(tuned("tiny", signed(plain), "signed"), test),
        "emulated, small tuned without the sign": bench.exact_match(emulated(tuned("nano", plain, "plain")), test),
    }


STUDY = Study(
    claim="A large base with the shift of a small tuned model has the small one's behaviour and the large one's "
    "knowledge, without tuning the large one (up-scaling, arXiv:2310.12962). Here the behaviour is a sign behind the "
    "answer, the knowledge two skills that only the large base has.",
    unit="exact match, the sign included, of two skills that only the large base knows, in per cent, more is better",
    measure=measure,
    contrasts=(
        Contrast("the shift brings the behaviour", "emulated", "large base", "above"),
        Contrast("the large base brings the knowledge", "emulated", "small, tuned", "above"),
        Contrast(
            "the shift of a small model tuned on the same rows without the sign",
            "emulated, small tuned without the sign",
            "large base",
            "none",
        ),
    ),
    finding="Shown: the shift brings behaviour and knowledge together where neither model has both, in the mean as "
    "well as tuning the large base does (38 and 39 per cent). But seeds differ: four have 24 to 61 per cent, and one "
    "has 0, where the tuned large base has 35; why is not known. The sign is one that the large base already writes in "
    "places (a digit); in earlier trials with one that it never writes (an underscore) nothing came, as the shift of "
    "tokens that neither small model was trained on is noise. A sign before the answer came to nothing, since the "
    "small model did not learn it in 40 steps.",
)
