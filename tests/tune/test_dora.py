"""DoRA against PEFT's, and against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from families import tiny
from temper.core.errors import SettingError
from temper.delta import DenseDelta, read_delta
from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.tune.dora import DirectionUpdate, DoRA, DoRATuning
from training import attach, moved, outputs

NAMES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_fc", "attn.c_proj", "mlp.c_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
PARTS = {"llama": DoRA().targets, "gpt2": ("up", "o", "down"), "opt": DoRA().targets}


def updates(tuning: DoRATuning) -> list[DirectionUpdate]:
    return [update for update in tuning.updates if isinstance(update, DirectionUpdate)]


def theirs(family: str, **settings: Any) -> tuple[Model, dict[str, Any]]:
    """A model in PEFT's hands, and its adapted layers by path."""
    model = tiny(family)
    fan_in = family == "gpt2"
    config = LoraConfig(use_dora=True, target_modules=NAMES[family], fan_in_fan_out=fan_in, **settings)
    return model, dict(get_peft_model(model.module, config).base_model.model.named_modules())


@pytest.mark.parametrize("family", NAMES)
def test_it_is_pefts(family: str) -> None:
    """The same numbers give the same outputs, and each the same gradient, with biases (opt, gpt2) or without."""
    model = tiny(family)
    tuning = DoRA(rank=4, alpha=6, targets=PARTS[family]).attach(model)
    other, layers = theirs(family, r=4, lora_alpha=6)
    for update in updates(tuning):
        torch.testing.assert_close(update.magnitude_O, layers[update.part.path].lora_magnitude_vector["default"].weight)
    moved(tuning)
    with torch.no_grad():
        for update in updates(tuning):
            layer = layers[update.part.path]
            layer.lora_A["default"].weight.copy_(update.a_RI)
            layer.lora_B["default"].weight.copy_(update.b_OR)
            layer.lora_magnitude_vector["default"].weight.copy_(update.magnitude_O)
    # Sums of some fifty float32 products in another order.
    torch.testing.assert_close(outputs(model), outputs(other), atol=2e-5, rtol=1e-5)
    assert float((outputs(model) - outputs(tiny(family))).abs().max()) > 1e-2
    tokens = torch.arange(4, 30)[None]
    for module in (model.module, other.module):
        module(tokens).logits.square().mean().backward()
    for update in updates(tuning):
        layer = layers[update.part.path]
        expected = {
            "lora_A": layer.lora_A["default"].weight.grad,
            "lora_B": layer.lora_B["default"].weight.grad,
            "magnitude": layer.lora_magnitude_vector["default"].weight.grad,
        }
        for name, parameter in update.parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_the_new_matrix_is_the_papers(family: str) -> None:
    """m (V + Delta V) / ||V + Delta V||_c, row by row, of each part of a fused module by itself."""
    model = tiny(family)
    tuning = DoRA(rank=3, targets=("0.k", "1.up"), rs_lora=True).attach(model)
    moved(tuning)
    before = {update.part: part_weight(model.module, update.part).detach().clone() for update in updates(tuning)}
    expected = {}
    for update in updates(tuning):
        direction_OI = before[update.part] + 6 / 3**0.5 * (update.b_OR @ update.a_RI).detach()
        rows = [m * row / row.square().sum().sqrt() for m, row in zip(update.magnitude_O, direction_OI, strict=True)]
        expected[update.part] = torch.stack(rows).detach()
    tuning.merge()
    assert len(expected) == 2
    for part, value in expected.items():
        torch.testing.assert_close(part_weight(model.module, part).detach(), value, atol=1e-6, rtol=1e-5)


def test_dropout_takes_inputs_from_the_matrix_and_its_update_alike() -> None:
    """With m twice the length and no update, a dropped input is missing from what is added: y = W x + b + W drop(x)."""
    model = tiny("opt")
    tuning = DoRA(rank=2, dropout=0.5, targets=("0.up",)).attach(model)
    (update,) = updates(tuning)
    with torch.no_grad():
        update.magnitude_O.mul_(2)
    module = model.module.get_submodule(update.part.path)
    x_TI = torch.randn(5, update.part.in_features)
    module.train()
    torch.manual_seed(3)
    got_TO = module(x_TI)
    torch.manual_seed(3)
    dropped_TI = torch.nn.functional.dropout(x_TI, 0.5)
    expected_TO = x_TI @ module.weight.T + module.bias + dropped_TI @ module.weight.T
    torch.testing.assert_close(got_TO, expected_TO, atol=1e-5, rtol=1e-5)
    module.eval()
    torch.testing.assert_close(module(x_TI), 2 * (x_TI @ module.weight.T) + module.bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_it_begins_at_the_base_from_any_start(init: str) -> None:
    model = tiny("llama")
    base = outputs(model)
    tuning = attach({"dora": {"rank": 3, "init": init}}, model)
    # From CorDA's, V + B A - B A is V to rounding, and so are its lengths.
    torch.testing.assert_close(outputs(model), base, atol=2e-5, rtol=1e-5)
    moved(tuning)
    attached = outputs(model)
    assert float((attached - base).abs().max()) > 1e-3
    tuning.merge()
    torch.testing.assert_close(outputs(model), attached, atol=2e-5, rtol=1e-5)


def test_what_is_held_in_bfloat16_begins_at_its_own_lengths() -> None:
    model = tiny("llama")
    tuning = DoRA(rank=2).attach(model)
    before = [update.magnitude_O.detach().clone() for update in updates(tuning)]
    tuning.hold_in(torch.bfloat16)
    for update, old_O in zip(updates(tuning), before, strict=True):
        held_OI = part_weight(model.module, update.part)
        assert held_OI.dtype == torch.bfloat16 and update.magnitude_O.dtype == torch.float32
        assert torch.equal(update.magnitude_O, held_OI.float().norm(dim=1))
        assert not torch.equal(update.magnitude_O, old_O), "the control: rounding has changed the lengths"


def test_saved_it_is_a_dense_change_of_the_adapted_matrices(tmp_path: Path) -> None:
    model = tiny("llama")
    tuning = DoRA(rank=2, targets=("1.q",)).attach(model)
    moved(tuning)
    tuning.save(tmp_path)
    delta = read_delta(tmp_path / "delta")
    assert isinstance(delta, DenseDelta) and len(delta.names()) == 1 and "layers.1" in delta.names()[0]


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(SettingError, match=r"tune\.dora\.rank: 400 exceeds the smaller side of .* try \d+ or less"):
        DoRA(rank=400).attach(tiny("llama"))
    with pytest.raises(SettingError, match=r"tune\.dora\.targets: 'qq' matches no part"):
        DoRA(targets=("qq",)).attach(tiny("llama"))
