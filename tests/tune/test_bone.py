"""Bone, both forms, against PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import MissConfig, PeftModel, get_peft_model

from families import tiny
from temper.core.errors import SettingError
from temper.tune.bone import Bone
from training import moved, outputs

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(("form", "block"), [("row", 8), ("row", 7), ("guided", 8), ("guided", 12)])
def test_it_is_pefts(form: str, block: int) -> None:
    """The same blocks give the same outputs and gradients; 7 divides no side, which PEFT pads and so do we."""
    model = tiny("llama")
    tuning = Bone.model_validate({"block": block, "form": form}).attach(model)
    moved(tuning)
    config = MissConfig(r=block, target_modules=NAMES, init_weights=True if form == "row" else "bat")
    theirs = tiny("llama")
    peft_model = get_peft_model(theirs.module, config)  # type: ignore[arg-type]
    layers: dict[str, Any] = dict(peft_model.base_model.model.named_modules())
    ours = {name.rsplit(".", 2)[0]: parameter for name, parameter in tuning.parameters()}
    with torch.no_grad():
        for path, parameter in ours.items():
            layers[path].miss_block["default"].copy_(parameter)
    # Sums of some fifty float32 products in another order.
    torch.testing.assert_close(outputs(model), outputs(theirs), atol=2e-5, rtol=1e-5)
    tokens = torch.arange(4, 30)[None]
    for module in (model.module, theirs.module):
        module(tokens).logits.square().mean().backward()
    for path, parameter in ours.items():
        expected = layers[path].miss_block["default"].grad
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=1e-4)


def test_a_saved_row_update_is_a_peft_adapter(tmp_path: Path) -> None:
    model = tiny("gpt_neox")
    tuning = Bone(block=6).attach(model)
    moved(tuning)
    attached = outputs(model)
    tuning.save(tmp_path)
    base = tiny("gpt_neox")
    PeftModel.from_pretrained(base.module, str(tmp_path / "delta"))
    torch.testing.assert_close(outputs(base), attached, atol=2e-5, rtol=1e-5)


def test_the_guided_form_is_the_papers() -> None:
    """W'_ij = W_ij + W_ij b_i + b_i, block by block."""
    model = tiny("llama")
    tuning = Bone(block=12, form="guided", targets=("0.up",)).attach(model)
    moved(tuning)
    ((_, block_NRR),) = tuning.parameters()
    module = model.module.get_submodule("model.layers.0.mlp.up_proj")
    expected = module.weight.detach().clone()
    for i in range(72 // 12):
        for j in range(48 // 12):
            view = expected[12 * i : 12 * i + 12, 12 * j : 12 * j + 12]
            view += view @ block_NRR[i] + block_NRR[i]
    x = torch.randn(3, 48)
    torch.testing.assert_close(module(x), x @ expected.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": 50}, r"tune\.bone\.block: 50 exceeds the 48 inputs of .*q_proj; try 48 or less"),
        ({"block": 9, "form": "guided"}, r"tune\.bone\.block: 9 does not divide both sides \(48 x 48\).*divisor of 48"),
        ({"targets": ["z"]}, r"tune\.bone\.targets: 'z' matches no part"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Bone.model_validate(settings).attach(tiny("llama"))
