"""Merging stages of a run: whole weights and deltas, tied and fused families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from deltas import make_dense, make_low_rank
from families import tiny
from finished_run import FinishedRun
from temper.core.errors import ModelError
from temper.models.load import load_model
from temper.stages.base import Outcome, Stage
from temper.stages.merge import MergeStage

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox", "phi3")


def merge(run: FinishedRun, **settings: Any) -> tuple[dict[str, Tensor], Outcome]:
    stage = Stage.parse({"merge": {"method": "linear", **settings}})
    outcome = stage.run(run, "base")
    return weights(load_model(run.folder / "model")), outcome


def weights(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.module.named_parameters()}


def two_stages(run: FinishedRun) -> None:
    run.finish("whole", tiny(run.family, seed=1))
    run.finish("lora", make_low_rank(tiny(run.family)))


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        # Sums of a few float32 values up to about 5.
        torch.testing.assert_close(
            first[name], second[name], atol=2e-6, rtol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weighted_sum_is_the_formula(family: str, tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, family)
    two_stages(run)
    merged, _ = merge(run, method={"linear": {"weights": [0.7, 0.9]}}, of=["whole", "lora"])
    assert run.loaded == ["base"], "no second model is loaded whole by the context"
    base, whole, lora = (weights(run.load(stage)) for stage in ("base", "whole", "lora"))
    for name, value in merged.items():
        b, w, a = base[name].double(), whole[name].double(), lora[name].double()
        reference = b + 0.7 * (w - b) + 0.9 * (a - b)
        torch.testing.assert_close(value.double(), reference, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_weights_are_the_mean(family: str, tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, family)
    two_stages(run)
    merged, _ = merge(run, of=["whole", "lora"])
    whole, lora = (weights(run.load(stage)) for stage in ("whole", "lora"))
    assert_close(merged, {name: (whole[name] + lora[name]) / 2 for name in whole})


@pytest.mark.parametrize("stage", ["whole", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_model_merged_is_itself(family: str, stage: str, tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, family)
    two_stages(run)
    merged, outcome = merge(run, of=[stage])
    itself = weights(run.load(stage))
    assert_close(merged, itself)
    other = "lora" if stage == "whole" else "whole"
    run.name = "again"
    again, _ = merge(run, method={"linear": {"weights": [1, 0]}}, of=[stage, other])
    assert_close(again, itself)
    assert outcome.details["parameters"] == sum(value.numel() for value in itself.values())


def test_what_no_model_changed_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("lora", make_low_rank(tiny()))
    merged, outcome = merge(run, of=["lora"])
    base, lora = weights(run.load("base")), weights(run.load("lora"))
    changed = set(make_low_rank(tiny()).names())
    assert outcome.details["changed_tensors"] == len(changed)
    for name, value in merged.items():
        assert torch.equal(value, lora[name] if name in changed else base[name]), name


def test_a_chain_of_deltas_is_followed_to_whole_weights(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("whole", tiny(seed=1))
    run.finish("first", make_low_rank(tiny(), 1), start="whole")
    run.finish("second", make_dense(tiny(), 2), start="first")
    merged, _ = merge(run, of=["second", "whole"], method={"linear": {"weights": [0.5, 0.5]}})
    second, whole = weights(run.load("second")), weights(run.load("whole"))
    assert_close(merged, {name: (second[name] + whole[name]) / 2 for name in whole})


@pytest.mark.parametrize("start", ["adapt", "base", "whole"])
def test_changes_relative_to_another_stage(start: str, tmp_path: Path) -> None:
    """merged = start + polish's change since start + other's change since start."""
    run = FinishedRun(tmp_path)
    run.finish("whole", tiny(seed=1))
    run.finish("adapt", make_low_rank(tiny(), 1))
    run.finish("polish", make_low_rank(tiny(), 2), start="adapt")
    run.finish("other", make_low_rank(tiny(), 3))
    merged, _ = merge(run, of=["polish", "other"], base=start, method={"linear": {"weights": [1, 2]}})
    base, polish, other = (weights(run.load(stage)) for stage in (start, "polish", "other"))
    assert_close(merged, {n: base[n] + (polish[n] - base[n]) + 2 * (other[n] - base[n]) for n in base})


def test_tied_stays_tied(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, "qwen2")
    run.finish("whole", tiny("qwen2", seed=1))
    run.finish("dense", make_dense(tiny("qwen2")))
    merge(run, of=["whole", "dense"])
    model = load_model(run.folder / "model")
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(run.folder / "model" / "model.safetensors")


def test_bfloat16_models_are_summed_in_float32(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, settings={"dtype": torch.bfloat16})
    run.finish("a", tiny(seed=1, dtype=torch.bfloat16))
    run.finish("b", tiny(seed=2, dtype=torch.bfloat16))
    merged, _ = merge(run, of=["a", "b"])
    a, b = weights(run.load("a")), weights(run.load("b"))
    for name, value in merged.items():
        assert value.dtype == torch.bfloat16
        # The float32 sum is off by 2^-23 at most, which may tip the one rounding to bfloat16 (2^-8).
        mean = ((a[name].double() + b[name].double()) / 2).to(torch.bfloat16)
        torch.testing.assert_close(value, mean, atol=3e-7, rtol=2**-8)


def test_models_that_do_not_fit_are_named_with_both_shapes(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("larger", tiny(vocab_size=99))
    run.finish("deeper", tiny(num_hidden_layers=3))
    run.finish("shallow", tiny(num_hidden_layers=1))
    run.finish("lora", make_low_rank(tiny(hidden_size=96)))
    for stage, message in {
        "larger": r"'larger': model\.embed_tokens\.weight.*\(99, 48\).*\(97, 48\)",
        "deeper": r"'deeper': model\.layers\.2\..*not in the base",
        "shallow": r"'shallow': model\.layers\.1\..*not in this model",
        "lora": r"'lora': model\.layers\.0\..*\(96, \d+\).*\(48, \d+\)",
    }.items():
        with pytest.raises(ModelError, match=message):
            merge(run, of=[stage])
        assert not (run.folder / "model").exists()


def test_a_tied_base_refuses_a_model_that_came_apart(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, "qwen2")
    run.finish("apart", tiny("qwen2", tie_word_embeddings=False))
    with pytest.raises(ModelError, match=r"lm_head\.weight: is tied to model\.embed_tokens\.weight in the base"):
        merge(run, of=["apart"])


def test_settings_are_checked_before_anything_runs() -> None:
    stage = MergeStage.model_validate({"method": "linear", "of": ["a", "b"]})
    assert list(stage.models("z")) == ["a", "b", "base"]
    assert Stage.parse(stage.written()) == stage
    with pytest.raises(ValidationError, match="3 factors for 2 models"):
        MergeStage.model_validate({"method": {"linear": {"weights": [1, 2, 3]}}, "of": ["a", "b"]})
    with pytest.raises(ValidationError, match="at least 1"):
        MergeStage.model_validate({"method": "linear", "of": []})
