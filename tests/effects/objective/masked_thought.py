"""Masked thought against plain training on few reasoned answers, and where there is no thought to hide."""

from __future__ import annotations

from typing import Any

from effects.bench import Bench
from effects.study import Contrast, Study
from temper.data.encode import Encoder
from temper.lab.training import skill_named
from temper.models.generate import generate

FEW = 96


def contents(bench: Bench, num: int, split: str, is_reasoned: bool) -> list[dict[str, str]]:
    """Return questions of two steps; reasoned answers write the first step's result before the second's."""
    skill, first = skill_named("reverse_shift"), skill_named("reverse")
    return [
        {
            "prompt": skill.prompt(word),
            "completion": (f"{first.answer(word)}=" if is_reasoned else "") + skill.answer(word),
        }
        for word in skill.arguments(split, num, bench.seed)
    ]


def accuracy(bench: Bench, objective: Any, is_reasoned: bool) -> float:
    """Return how often the last step's result is right on held-out questions, in per cent."""
    rows = bench.made("completion", contents(bench, FEW, "train", is_reasoned))
    # Without a thought 40 steps, since at 80 both are right for nearly all, and nothing could be seen.
    steps = 120 if is_reasoned else 40
    model = bench.tuned("tiny", rows, objective=objective, lr=2e-3, steps=steps, batch_size=16)
    asked = contents(bench, 150, "test", is_reasoned)
    encoder = Encoder(model.tokenizer, 64)
    prompts = [encoder.prompt(row) for row in bench.made("completion", asked)]
    written = [model.tokenizer.decode(tokens) for tokens in generate(model, prompts, 16)]
    right = [
        text.split("=")[-1] == each["completion"].split("=")[-1] for text, each in zip(written, asked, strict=True)
    ]
    return 100 * sum(right) / len(right)


def measure(bench: Bench) -> dict[str, float]:
    masked = {"masked_thought": {"probability": 0.2, "warmup": 0.5}}
    return {
        "sft": accuracy(bench, "sft", is_reasoned=True),
        "masked_thought": accuracy(bench, masked, is_reasoned=True),
        "sft, no thought": accuracy(bench, "sft", is_reasoned=False),
        "masked_thought, no thought": accuracy(bench, masked, is_reasoned=False),
    }


STUDY = Study(
    claim="Hiding part of the reasoning that a model reads while it learns makes its answers better: 5 points of "
    "accuracy on GSM8K over plain fine-tuning (arXiv:2403.02178).",
    unit="exact match of the answer's last step in per cent, more is better",
    measure=measure,
    contrasts=(
        Contrast("hiding thoughts makes answers better", "masked_thought", "sft", "above"),
        Contrast(
            "no better where answers are given without a thought",
            "masked_thought, no thought",
            "sft, no thought",
            "none",
        ),
    ),
    finding="Contradicted, in every seed: hiding a fifth of the answer's letters as they are read, more and more over "
    "the first half of 120 steps, costs 22 of 53 points. The control fails: where there is no thought to hide it costs "
    "13 of 39, in every seed, too; so it is likely not the thought that is missed but the place in the word, which the "
    "letter before tells and which prose would tell in other ways. All at lr 2e-3 and a probability of 0.2, half of "
    "the default; earlier trials on one seed lost as well.",
)
