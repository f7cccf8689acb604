"""S3FT where the gold answers are right and in a style that is not the base's own."""

from __future__ import annotations

from effects.bench import Bench, styled
from effects.study import Contrast, Study
from temper.data.example import Row
from temper.data.rows import Rows
from temper.synthesize.base import Round
from temper.synthesize.s3ft import S3FT

NEW, KNOWN = "reverse", "sort"
KEPT = ("copy", "shift", "swap", "duplicate")


def measure(bench: Bench) -> dict[str, float]:
    plain = [*bench.rows(NEW, 128), *bench.rows(KNOWN, 384)]
    gold = Rows.from_rows([styled(row, ",") for row in plain], f"gold {bench.seed}")
    method = S3FT.model_validate({"paraphrase": None, "verifier": {"exact": {"ignore_punctuation": True}}})
    mixed = method.make(Round(gold, bench.base("tiny"), bench.seed)).rows
    # The same rows as S3FT's own answers, in a second foreign style.
    foreign = [
        styled(row, "_") if made.columns["answer_from"] == "own" else old
        for row, made, old in zip(plain, mixed, gold, strict=True)
    ]
    kept = [row for skill in KEPT for row in bench.rows(skill, 40, "test")]
    target = [row for skill in (NEW, KNOWN) for row in bench.rows(skill, 60, "test")]

    def accuracies(name: str, rows: list[Row]) -> dict[str, float]:
        # In development 1e-3 in 60 steps kept less, and taught less of reverse, than 5e-4 in 120, in both arms.
        model = bench.tuned("tiny", Rows.from_rows(rows, name), lr=5e-4, steps=80)
        return {
            f"{name}, kept": bench.exact_match(model, kept),
            f"{name}, target": bench.exact_match(model, target, ignored=",_"),
        }

    arms = accuracies("s3ft", mixed) | accuracies("sft", list(gold)) | accuracies("foreign", foreign)
    arms["base, kept"] = bench.exact_match(bench.base("tiny"), kept)
    return {**arms, "sft, target, less 5 points": arms["sft, target"] - 5}


STUDY = Study(
    claim="Training on the model's own answer where it is right, and on the gold one elsewhere, learns the target as "
    "sft does and halves what other skills lose (arXiv:2502.08130: a loss of 2.5 instead of 4.4 points).",
    unit="exact match in per cent, of four skills that are not trained on (kept) or of the two that are (target), "
    "more is better",
    measure=measure,
    contrasts=(
        Contrast("S3FT keeps more", "s3ft, kept", "sft, kept", "above"),
        Contrast(
            "S3FT learns no less than sft, within 5 points", "s3ft, target", "sft, target, less 5 points", "above"
        ),
        Contrast("a second foreign style in place of the own answers", "foreign, kept", "sft, kept", "none"),
    ),
    finding="S3FT keeps and learns more, where a second foreign style does nothing. It loses 73 of the 100 points that "
    "the base has, sft 99: less, but not half. The lead on the target flatters it: half of its questions are of a "
    "skill that the base answers without error, and answers in the gold style are longer and new to it.",
)
