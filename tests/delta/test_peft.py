"""Low-rank deltas against the real PEFT: its adapters here, ours there, with equal outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltas import make_low_rank
from families import tiny
from temper.core.errors import ModelError
from temper.delta import Factors, LowRankDelta, Provenance, add, read_delta
from temper.models.model import Model

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj"],
}
TOKENS = torch.tensor([[1, 5, 9, 44, 7, 3, 60, 12]])
# Up to 2 blocks of float32 products in another order; logits are of the order of 1.
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@torch.no_grad()
def logits(module: Any) -> Tensor:
    return module(input_ids=TOKENS, use_cache=False).logits


def peft_adapter(model: Model, folder: Path, **settings: Any) -> Tensor:
    """Save a random PEFT adapter and return what the model says with it."""
    torch.manual_seed(3)
    adapted = get_peft_model(
        model.module, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    ).eval()
    adapted.save_pretrained(folder)
    return logits(adapted)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "lora_dropout": 0.1},
        {"r": 4, "rank_pattern": {}, "alpha_pattern": {r".*\.0\..*": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_an_adapter_of_peft_loads_here(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = dict(settings)
    if "rank_pattern" in settings:
        settings["rank_pattern"] = {TARGETS[family][0]: 2, TARGETS[family][1]: 5}
    expected = peft_adapter(tiny(family), tmp_path, target_modules=TARGETS[family], **settings)
    model = tiny(family)
    base = logits(model.module)
    undo = read_delta(tmp_path).apply(model)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(logits(model.module), expected, **CLOSE)
    undo.undo()
    assert torch.equal(logits(model.module), base)


def test_the_module_says_how_it_stores_its_weight_whatever_the_adapter_says(tmp_path: Path) -> None:
    """PEFT corrects `fan_in_fan_out` by layer; some adapters of GPT-2 say false, and a square weight hides it."""
    expected = peft_adapter(tiny("gpt2"), tmp_path, r=4, target_modules=["attn.c_proj"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fan_in_fan_out": False}))
    model = tiny("gpt2")
    read_delta(tmp_path).apply(model)
    torch.testing.assert_close(logits(model.module), expected, **CLOSE)


@pytest.mark.parametrize("family", TARGETS)
def test_our_adapter_loads_in_peft(family: str, tmp_path: Path) -> None:
    """Ranks and scalings differ by module, and q and v of a fused module are two adapters in one."""
    model = tiny(family)
    delta = make_low_rank(model)
    delta.save(tmp_path)
    adapted = PeftModel.from_pretrained(tiny(family).module, tmp_path).eval()
    delta.apply(model)
    torch.testing.assert_close(logits(adapted), logits(model.module), **CLOSE)
    # Nothing more than what the delta names is adapted.
    found = {name.split(".lora_A")[0] for name, _ in adapted.base_model.model.named_parameters() if ".lora_A" in name}
    assert found == set(delta.factors)
    assert adapted.peft_config["default"].base_model_name_or_path == "lab:tiny"


def test_a_sum_of_adapters_loads_in_peft(tmp_path: Path) -> None:
    model = tiny("gpt2")
    total = add(make_low_rank(model, 1), make_low_rank(model, 2).scale(-0.5))
    total.save(tmp_path)
    adapted = PeftModel.from_pretrained(tiny("gpt2").module, tmp_path).eval()
    make_low_rank(model, 1).apply(model)
    make_low_rank(model, 2).scale(-0.5).apply(model)
    torch.testing.assert_close(logits(adapted), logits(model.module), **CLOSE)


def test_a_path_that_ends_another_keeps_its_own_rank(tmp_path: Path) -> None:
    """PEFT looks for patterns at the end of a path; ours say the whole of it."""

    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 3, bias=False)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 3, bias=False)
            self.a, self.b = Inner(), Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + self.a.head(x) * self.b.head(x)

    torch.manual_seed(0)
    module = Outer()
    ranks = {"head": 2, "a.head": 1, "b.head": 1}
    delta = LowRankDelta({path: Factors(torch.randn(r, 3), torch.randn(3, r), 0.7) for path, r in ranks.items()})
    delta.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
    x = torch.randn(5, 3)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(module, tmp_path).eval()(x)
        fresh = Outer()
        state = {name.replace(".base_layer", ""): value for name, value in module.state_dict().items()}
        fresh.load_state_dict({name: value for name, value in state.items() if "lora" not in name})
        read_delta(tmp_path).apply(fresh)
        torch.testing.assert_close(fresh(x), expected, atol=1e-5, rtol=1e-5)


def test_a_foreign_adapter_says_little_of_where_it_comes_from(tmp_path: Path) -> None:
    peft_adapter(tiny("llama"), tmp_path, target_modules=["q_proj"])
    assert read_delta(tmp_path).provenance == Provenance(version="")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    ],
)
def test_what_peft_can_and_we_cannot_is_named(settings: dict[str, Any], key: str, tmp_path: Path) -> None:
    peft_adapter(tiny("llama"), tmp_path, target_modules=["q_proj"], **settings)
    with pytest.raises(ModelError, match=rf"adapter_config\.json: {key}: "):
        read_delta(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
        ({"some_future_key": 3}, "some_future_key: 3"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern: '\\('"),
        ({"lora_alpha": ...}, "lora_alpha: is missing"),
    ],
)
def test_a_config_that_means_something_else_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_low_rank(tiny("llama")).save(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    with pytest.raises(ModelError, match=message):
        read_delta(tmp_path)


def test_tensors_that_are_no_linear_factors_are_named(tmp_path: Path) -> None:
    peft_adapter(tiny("llama"), tmp_path, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ModelError, match=r"embed_tokens\..*: is not a LoRA factor"):
        read_delta(tmp_path)
    make_low_rank(tiny("llama")).save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    dropped = next(key for key in tensors if "lora_B" in key)
    del tensors[dropped]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="lora_A and lora_B do not fit"):
        read_delta(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no adapter_model"):
        read_delta(tmp_path)
