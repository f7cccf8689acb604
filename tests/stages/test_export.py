"""What is exported, read by plain transformers and by the real PEFT, says what the stage's model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltas import make_dense, make_low_rank
from families import tiny
from finished_run import FinishedRun
from temper.core.errors import ModelError, SettingError
from temper.delta import read_delta
from temper.stages.base import Stage
from temper.stages.export import ExportStage, export

TOKENS = torch.tensor([[1, 5, 9, 44, 7, 3, 60, 12]])
FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox", "phi3")
# Two blocks of float32 products in another order; logits are of the order of 1.
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@torch.no_grad()
def logits(module: Any) -> Tensor:
    return module.eval()(input_ids=TOKENS, use_cache=False).logits.float()


def chain(root: Path, family: str) -> FinishedRun:
    run = FinishedRun(root, family)
    run.finish("adapt", make_low_rank(tiny(family), 1))
    run.finish("polish", make_low_rank(tiny(family), 2).scale(0.5), start="adapt")
    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_folder_loads_in_transformers(family: str, tmp_path: Path) -> None:
    run = chain(tmp_path, family)
    stage = Stage.parse({"export": {"from": "polish"}})
    outcome = stage.run(run, "adapt")
    module = AutoModelForCausalLM.from_pretrained(run.folder / "export")
    expected = run.load("polish").module
    weights, wanted = module.state_dict(), expected.state_dict()
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    # Temper's norms take their sums in another order.
    torch.testing.assert_close(logits(module), logits(expected), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(module), logits(run.load("adapt").module), atol=0.01)
    assert outcome.details["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    text = "hello there"
    theirs, ours = AutoTokenizer.from_pretrained(run.folder / "export")(text), run.load("base").tokenizer(text)
    # transformers gives every Qwen 2 folder Qwen's tokenizer; where that is not the saved one, a warning says so.
    assert (theirs["input_ids"] == ours["input_ids"]) == (family != "qwen2")
    assert bool(outcome.warnings) == (family == "qwen2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_of_low_rank_stages_is_one_adapter_in_peft(family: str, tmp_path: Path) -> None:
    run = chain(tmp_path, family)
    Stage.parse({"export": {"as": "adapter"}}).run(run, "polish")
    adapted = PeftModel.from_pretrained(tiny(family).module, run.folder / "export")
    torch.testing.assert_close(logits(adapted), logits(run.load("polish").module), **CLOSE)
    loaded = AutoModelForCausalLM.from_config(tiny(family).module.config)
    loaded.load_state_dict(tiny(family).module.state_dict())
    read_delta(run.folder / "export").apply(loaded)
    torch.testing.assert_close(logits(loaded), logits(run.load("polish").module), **CLOSE)


def test_the_number_format_can_be_chosen(tmp_path: Path) -> None:
    run = chain(tmp_path, "qwen2")
    for dtype in ("bfloat16", "float16"):
        export(run, "polish", tmp_path / dtype, dtype=dtype)
        module = AutoModelForCausalLM.from_pretrained(tmp_path / dtype)
        expected = run.load("polish").module
        for name, parameter in module.named_parameters():
            assert parameter.dtype == getattr(torch, dtype)
            assert torch.equal(parameter, expected.get_parameter(name).to(parameter.dtype)), name
    export(run, "polish", tmp_path / "adapter", form="adapter", dtype="bfloat16")
    assert all(f.a_RI.dtype == torch.bfloat16 for f in read_delta(tmp_path / "adapter").factors.values())


def test_a_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    model = tiny(seed=1)
    with torch.no_grad():
        model.module.model.norm.weight[3] = 1e6
    run.finish("large", model)
    with pytest.raises(ModelError, match=r"model\.norm\.weight: has values that torch\.float16 cannot hold"):
        export(run, "large", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_what_no_adapter_can_hold_is_explained(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    run.finish("whole", tiny(seed=1))
    run.finish("after", make_low_rank(tiny()), start="whole")
    run.finish("dense", make_dense(tiny()))
    for stage, message in {
        "after": "cannot hold 'after': stage 'whole' wrote whole weights",
        "dense": "the change of stage 'dense' is dense",
        "base": "without any change",
    }.items():
        with pytest.raises(SettingError, match=rf"^as: 'adapter' .*{message}.*as: model"):
            export(run, stage, tmp_path / "out", form="adapter")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_only_an_earlier_export_is_replaced(form: Any, tmp_path: Path) -> None:
    run = chain(tmp_path, "llama")
    mine = tmp_path / "mine"
    mine.mkdir()
    export(run, "adapt", mine, form=form)
    first = {file.name: file.read_bytes() for file in mine.iterdir()}
    export(run, "polish", mine, form=form)
    assert {file.name for file in mine.iterdir()} == set(first)
    weights = "model.safetensors" if form == "model" else "adapter_model.safetensors"
    assert (mine / weights).read_bytes() != first[weights]

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingError, match=r"^to: .*no export of Temper's"):
        export(run, "adapt", theirs, form=form)
    assert [file.name for file in theirs.iterdir()] == ["thesis.txt"]
    with pytest.raises(SettingError, match=r"^to: "):
        export(run, "adapt", theirs / "thesis.txt", form=form)


def test_the_settings_of_a_recipe() -> None:
    stage = Stage.parse({"export": {"from": "adapt", "as": "adapter", "dtype": "bfloat16", "to": "out"}})
    assert isinstance(stage, ExportStage)
    assert (stage.from_stage, stage.form, stage.to) == ("adapt", "adapter", Path("out"))
    assert stage.produces == "files"
    assert list(stage.models("polish")) == ["adapt"] and list(ExportStage().models("polish")) == ["polish"]
    assert Stage.parse(stage.written()) == stage
