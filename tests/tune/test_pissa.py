"""PiSSA against PEFT's, its fast decomposition against the exact one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from families import tiny
from temper.models.anatomy import part_weight
from temper.tune.lora import LoRA, LoRATuning
from training import moved, outputs

NAMES = {"llama": ["q_proj", "v_proj", "down_proj", "up_proj"], "gpt2": ["c_fc"]}
PARTS = {"llama": ("q", "v", "down", "up"), "gpt2": ("up",)}


def pissa(family: str, rank: int = 4, targets: tuple[str, ...] = LoRA().targets, **settings: Any) -> LoRATuning:
    written = {"rank": rank, "alpha": 6, "targets": targets, "init": {"pissa": settings}}
    return LoRA.model_validate(written).attach(tiny(family))


@pytest.mark.parametrize("family", NAMES)
def test_it_is_pefts(family: str) -> None:
    """The same factors, the same outputs once they have moved, and the base where they have not."""
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=NAMES[family],
        fan_in_fan_out=family == "gpt2",
        init_lora_weights="pissa",
    )
    other = tiny(family)
    layers: dict[str, Any] = dict(get_peft_model(other.module, config).base_model.model.named_modules())
    ours = pissa(family, targets=PARTS[family])
    assert torch.equal(outputs(ours.model), outputs(tiny(family))), "the start is the base, bit for bit"
    for adapter in ours.adapters:
        layer = layers[adapter.part.path]
        b_OR, a_RI = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
        # Each component is unique up to its sign, which cancels in the product; float32 decompositions of size 100.
        torch.testing.assert_close((adapter.b_OR @ adapter.a_RI).detach(), b_OR @ a_RI, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(adapter.a_RI.norm(dim=1).detach(), a_RI.norm(dim=1), atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            adapter.a_RI.copy_(a_RI)
            adapter.b_OR.copy_(b_OR)
    moved(ours)
    with torch.no_grad():
        for adapter in ours.adapters:
            layers[adapter.part.path].lora_A["default"].weight.copy_(adapter.a_RI)
            layers[adapter.part.path].lora_B["default"].weight.copy_(adapter.b_OR)
    torch.testing.assert_close(outputs(ours.model), outputs(other), atol=5e-5, rtol=1e-4)
    assert float((outputs(other) - outputs(tiny(family))).abs().max()) > 1e-2


def test_what_is_frozen_is_the_rest_of_the_decomposition() -> None:
    """W - (alpha / r) B A keeps the smaller singular values of W and has no others."""
    ours = pissa("llama", rank=5, targets=("0.down",))
    (adapter,) = ours.adapters
    weight_OI = part_weight(ours.model.module, adapter.part).detach()
    rest_OI = weight_OI - adapter.scaling * (adapter.b_OR @ adapter.a_RI).detach()
    values, kept = torch.linalg.svdvals(weight_OI), torch.linalg.svdvals(rest_OI)
    torch.testing.assert_close(kept[: len(values) - 5], values[5:], atol=1e-5, rtol=1e-4)
    assert float(kept[len(values) - 5 :].max()) < 1e-5


def test_the_fast_decomposition_comes_to_the_exact_one() -> None:
    """The missed part of the largest components falls with each iteration to rounding."""

    def product(**settings: Any) -> torch.Tensor:
        (adapter,) = pissa("llama", rank=3, targets=("0.down",), **settings).adapters
        return (adapter.b_OR @ adapter.a_RI).detach()

    exact = product()
    missed = [float((product(iterations=count) - exact).norm() / exact.norm()) for count in (0, 4, 16)]
    assert missed[0] > 0.05 > missed[1] > missed[2] and missed[2] < 1e-2, missed
    assert torch.equal(product(iterations=4), product(iterations=4)), "the same seed, the same start"
