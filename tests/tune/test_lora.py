"""LoRA against PEFT, and its own settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from families import FAMILIES, tiny
from temper.core.errors import SettingError
from temper.tune.lora import LoRA
from training import moved, outputs


@pytest.mark.parametrize("settings", [{}, {"rs_lora": True}, {"ranks": {"up": 4}}, {"targets": ["q", "v"]}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_was_trained_here(tmp_path: Path, family: str, settings: dict) -> None:
    model = tiny(family)
    tuning = LoRA(rank=3, **settings).attach(model)
    moved(tuning)
    attached = outputs(model)
    tuning.save(tmp_path)
    base = tiny(family)
    PeftModel.from_pretrained(base.module, str(tmp_path / "delta"))
    torch.testing.assert_close(outputs(base), attached, atol=2e-5, rtol=1e-5)


def test_detached_is_the_base_bit_for_bit() -> None:
    model = tiny("gpt_neox")
    base, weights = outputs(model), {name: value.clone() for name, value in model.module.state_dict().items()}
    tuning = LoRA(rank=2).attach(model)
    moved(tuning)
    outputs(model)
    tuning.detach()
    assert torch.equal(outputs(model), base)
    assert all(torch.equal(model.module.state_dict()[name], value) for name, value in weights.items())


def test_the_scaling_is_the_papers() -> None:
    def scaling(**settings: object) -> set[float]:
        return {adapter.scaling for adapter in LoRA(**settings).attach(tiny("llama")).adapters}  # type: ignore[arg-type]

    assert scaling(rank=4) == {2.0}
    assert scaling(rank=4, alpha=4) == {1.0}
    assert scaling(rank=4, alpha=4, rs_lora=True) == {4 / math.sqrt(4)}


def test_an_update_is_b_times_a_scaled() -> None:
    model = tiny("llama")
    tuning = LoRA(rank=2, alpha=3, targets=("0.q",)).attach(model)
    (adapter,) = tuning.adapters
    moved(tuning)
    module = model.module.get_submodule(adapter.part.path)
    x = torch.randn(5, module.in_features)
    expected = x @ (module.weight + 1.5 * adapter.b_OR @ adapter.a_RI).T
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_targets_and_ranks_by_name_block_and_path() -> None:
    tuning = LoRA(rank=2, targets=("q", "1.down", "*.layers.0.mlp.up_proj"), ranks={"1.*": 3}).attach(tiny("llama"))
    assert {(a.part.block, a.part.name, a.a_RI.shape[0]) for a in tuning.adapters} == {
        (0, "q", 2),
        (1, "q", 3),
        (1, "down", 3),
        (0, "up", 2),
    }


def test_dropout_acts_on_the_adapter_in_training_only() -> None:
    model = tiny("llama")
    tuning = LoRA(rank=2, dropout=0.5).attach(model)
    moved(tuning)
    assert torch.equal(outputs(model), outputs(model))
    module = model.module.get_submodule(tuning.adapters[0].part.path)
    module.train()
    x = torch.ones(1, module.in_features)
    assert not torch.equal(module(x), module(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["qq"]}, r"tune\.lora\.targets: 'qq' matches no part of this model; did you mean 'q'"),
        ({"ranks": {"moe": 2}}, r"tune\.lora\.ranks: 'moe' matches no part"),
        (
            {"ranks": {"0.q": 400}},
            r"tune\.lora\.ranks: 400 exceeds the smaller side of .*layers\.0\..* try \d+ or less",
        ),
        ({"rank": 400}, r"tune\.lora\.rank: 400 exceeds the smaller side of .* try \d+ or less"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoRA(**settings).attach(tiny("llama"))
