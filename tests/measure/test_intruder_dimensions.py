"""Intruder dimensions against PEFT's own count, against the algorithm written out, and against planted ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension

from families import tiny
from temper.core.errors import ModelError
from temper.measure.base import Subject, Suite
from temper.measure.intruder_dimensions import count_intruders
from temper.measure.report import measure_model
from temper.models.load import as_model


def naive(tuned: torch.Tensor, base: torch.Tensor, k: int, epsilon: float) -> int:
    left, original = torch.linalg.svd(tuned)[0], torch.linalg.svd(base)[0]
    rank, count = min(base.shape), 0
    for j in range(min(k, rank)):
        best = max(abs(float(torch.dot(left[:, j], original[:, i]))) for i in range(rank))
        count += best < epsilon
    return count


@pytest.mark.parametrize("epsilon", [0.3, 0.5, 0.7])
def test_it_is_the_algorithm(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = []
    for shape in ((30, 12), (12, 30), (20, 20)):
        base = torch.randn(shape, generator=generator)
        tuned = base + 0.8 * torch.randn(shape, generator=generator)
        counts.append(count_intruders(tuned, base, 10, epsilon))
        assert counts[-1] == naive(tuned, base, 10, epsilon)
    assert any(counts)


def test_planted_directions_are_counted() -> None:
    """Base diag(2, 1, 0, ...); a rank-1 change along a new direction of strength 5 is one intruder, the largest one."""
    base = torch.zeros(8, 4)
    base[0, 0], base[1, 1], base[2, 2], base[3, 3] = 2.0, 1.5, 1.0, 0.5
    tuned = base.clone()
    tuned[6, 3] = 5.0
    assert count_intruders(base, base, 4, 0.5) == 0
    assert count_intruders(tuned, base, 4, 0.5) == 1
    assert count_intruders(3 * base, base, 4, 0.5) == 0, "longer, not new"


def test_it_is_pefts_count() -> None:
    base, tuned = tiny(), tiny()
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    wrapped = get_peft_model(tuned.module, config)
    said: list[str] = []
    reduce_intruder_dimension(wrapped, top_k=10, threshold_epsilon=0.5, logging_sink=said.append)
    wrapped.set_adapter("default")
    theirs = [int(found[1]) for line in said if (found := re.search(r"Intruders: (\d+)$", line))]
    theirs += [0] * sum("No intruders" in line for line in said)
    merged = as_model(wrapped.merge_and_unload(), tuned.tokenizer)
    score = Suite.parse("intruder_dimensions").measure(Subject(merged, base), Path())
    assert sorted(value for value in score.scores if value) == sorted(float(count) for count in theirs if count)
    assert sum(theirs) > 0 and len(score.scores) == 14, "seven matrices in each of two blocks"
    assert score.samples[0].score == max(score.scores)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_base_has_none_and_another_model_has_many(tmp_path: Path, family: str) -> None:
    suite = Suite.parse("intruder_dimensions")
    base = tiny(family)
    before = measure_model(base, [(suite, "keep")], tmp_path)
    assert before["suites"]["intruder dimensions"]["value"] == 0
    measured = measure_model(
        tiny(family, seed=1),
        [(suite, "keep")],
        tmp_path,
        base_fingerprint=base.fingerprint,
        load_base=lambda: tiny(family),
        base_reports=before["suites"],
    )
    report = measured["suites"]["intruder dimensions"]
    assert report["value"] > 3 and report["changes"]["base"]["verdict"] == "worse"
    with pytest.raises(ModelError, match="not in memory"):
        suite.measure(Subject(tiny(family, seed=1), base_fingerprint="elsewhere"), tmp_path)
