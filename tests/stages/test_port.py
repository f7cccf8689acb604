"""A change put onto another model: the sum of the papers, in the change's own form, for real PEFT too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from deltas import assert_same_bits, make_dense, make_low_rank, values
from families import tiny
from finished_run import FinishedRun
from temper.core.errors import ModelError, SettingError
from temper.delta import DenseDelta, LowRankDelta, read_delta
from temper.models.load import save_model
from temper.stages.base import Stage
from temper.stages.port import Port

FAMILIES = ("llama", "qwen2", "gpt2", "phi3")


def port(run: FinishedRun, previous: str = "base", **settings: Any) -> Any:
    stage = Stage.parse({"port": settings})
    outcome = stage.run(run, previous)
    run.stages[run.name] = (read_delta(run.folder / "delta"), next(iter(stage.models(previous))))
    return outcome


def weights(run: FinishedRun, stage: str) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in run._make(stage).module.named_parameters()}


def assert_is(run: FinishedRun, tuned: str, old: str, onto: str, scale: float = 1.0) -> None:
    """theta_new' = theta_new + s (theta_tuned - theta_old)."""
    made, new = weights(run, run.name), weights(run, onto)
    change, base = weights(run, tuned), weights(run, old)
    for name, value in made.items():
        # Three float32 roundings of values up to about 5.
        expected = new[name].double() + scale * (change[name].double() - base[name].double())
        torch.testing.assert_close(value.double(), expected, atol=3e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_follows_its_base_and_stays_low_rank(family: str, tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, family)
    run.finish("patch", make_low_rank(tiny(family)))
    run.finish("newer", tiny(family, seed=1))
    outcome = port(run, "newer", of="patch", scale=0.7)
    moved = read_delta(run.folder / "delta")
    assert isinstance(moved, LowRankDelta) and outcome.details["kind"] == "low_rank"
    assert moved.num_values == make_low_rank(tiny(family)).num_values
    assert moved.provenance.base_fingerprint == run._make("newer").fingerprint
    assert_is(run, "patch", "base", "newer", 0.7)


def test_the_patch_is_read_by_peft_on_the_new_base(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("patch", make_low_rank(tiny()))
    run.finish("newer", tiny(seed=1))
    port(run, onto="newer", of="patch")
    tokens = torch.tensor([[1, 5, 9, 44, 7]])
    with torch.no_grad():
        ours = run._make(run.name).module(tokens).logits
        peft = PeftModel.from_pretrained(run._make("newer").module, run.folder / "delta").eval()
        # Products in another order; logits are of the order of 1.
        torch.testing.assert_close(peft(tokens).logits, ours, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_difference_of_whole_models_is_transferred(family: str, tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, family)
    run.finish("old", tiny(family, seed=1))
    run.finish("tuned", tiny(family, seed=2))
    run.finish("newer", tiny(family, seed=3))
    port(run, onto="newer", of="tuned", since="old")
    assert isinstance(read_delta(run.folder / "delta"), DenseDelta)
    assert_is(run, "tuned", "old", "newer")


def test_a_chain_of_changes_is_ported_whole(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("first", make_low_rank(tiny(), 1))
    run.finish("second", make_low_rank(tiny(), 2), start="first")
    run.finish("newer", tiny(seed=3))
    port(run, onto="newer", of="second")
    assert isinstance(read_delta(run.folder / "delta"), LowRankDelta)
    assert_is(run, "second", "base", "newer")
    run.name = "half"
    port(run, onto="newer", of="second", since="first")
    assert_is(run, "second", "first", "newer")


def test_folders_from_elsewhere(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "run")
    run.finish("newer", tiny(seed=3))
    (tmp_path / "adapter").mkdir()
    make_low_rank(tiny()).write(tmp_path / "adapter")
    port(run, onto="newer", adapter=str(tmp_path / "adapter"))
    run.finish("patched", make_low_rank(tiny()))
    assert_is(run, "patched", "base", "newer")
    for name, seed in (("tuned", 4), ("untuned", 5)):
        save_model(tiny(seed=seed), tmp_path / name)
        run.finish(name, tiny(seed=seed))
    run.name = "again"
    port(run, onto="newer", tuned=str(tmp_path / "tuned"), untuned=str(tmp_path / "untuned"))
    assert_is(run, "tuned", "untuned", "newer")


def test_applied_and_undone_is_the_new_base_bit_for_bit(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("patch", make_dense(tiny()))
    run.finish("newer", tiny(seed=1))
    port(run, onto="newer", of="patch")
    model = run._make("newer")
    before = values(model.module)
    undo = read_delta(run.folder / "delta").apply(model)
    undo.undo()
    assert_same_bits(values(model.module), before)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("patch", make_low_rank(tiny()))
    run.finish("wider", tiny(hidden_size=96))
    with pytest.raises(ModelError, match=r"down_proj\.weight: has shape \(48, 72\) in the delta and \(96, 72\)"):
        port(run, onto="wider", of="patch")
    with pytest.raises(SettingError, match="has the change of 'patch' already"):
        port(run, onto="patch", of="patch")
    for wrong, reason in (
        ({}, "does not name one change"),
        ({"of": "a", "adapter": "b"}, "of and adapter"),
        ({"tuned": "a"}, "does not go with"),
        ({"adapter": "a", "since": "b"}, "has no effect"),
    ):
        with pytest.raises(ValidationError, match=reason):
            Port.model_validate(wrong)
    with pytest.raises(SettingError, match="is no folder"):
        Port.model_validate({"adapter": "not/there"}).content()


def test_the_key_names_folders_by_content(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    make_low_rank(tiny()).save(folder)
    stage = Port.model_validate({"adapter": str(folder)})
    first = stage.content()
    assert first and first == stage.content()
    make_low_rank(tiny(), seed=1).save(folder)
    assert stage.content() != first
    assert Port.model_validate({"of": "a"}).content() == ""
    assert list(Port.model_validate({"of": "a", "since": "b"}).models("z")) == ["z", "a", "b"]
