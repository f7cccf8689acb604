"""Computing activations again changes no bit, and less is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families import FAMILIES, tiny
from temper.core.errors import SettingError
from temper.models.recompute import num_recomputed, recomputing
from training import make_loop, trained

DROPOUT = {
    "gpt2": {"attn_pdrop": 0.2, "embd_pdrop": 0.1, "resid_pdrop": 0.3},
    "llama": {"attention_dropout": 0.2},
    "phi3": {"attention_dropout": 0.2, "resid_pdrop": 0.3},
    "gpt_neox": {"attention_dropout": 0.2, "hidden_dropout": 0.3},
}


def result(folder: Path, family: str, recompute: float, dtype: torch.dtype, tune: object) -> dict[str, torch.Tensor]:
    model = tiny(family, **DROPOUT.get(family, {}))
    return trained(make_loop(folder, model, tune=tune, num_steps=2, recompute=recompute, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tune", ["full", {"lora": {"rank": 2, "dropout": 0.3}}], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits(tmp_path: Path, family: str, tune: object, dtype: torch.dtype) -> None:
    kept = result(tmp_path / "kept", family, 0.0, dtype, tune)
    for share in (0.5, 1.0):
        again = result(tmp_path / str(share), family, share, dtype, tune)
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_dropout_does_something_here(tmp_path: Path) -> None:
    """The control of the test above: without it, equal bits would say nothing of dropout."""
    with_dropout = result(tmp_path / "a", "gpt2", 0.0, torch.float32, "full")
    without = trained(make_loop(tmp_path / "b", tiny("gpt2"), num_steps=2))
    assert not all(torch.equal(with_dropout[name], without[name]) for name in without)


def test_a_share_is_rounded_up_and_the_first_blocks_are_taken() -> None:
    assert [num_recomputed(4, share) for share in (0, 0.01, 0.25, 0.26, 0.5, 1)] == [0, 1, 1, 2, 2, 4]
    model = tiny("llama")
    with recomputing(model, 0.5):
        assert [block.gradient_checkpointing for block in model.module.model.layers] == [True, False]
    assert [block.gradient_checkpointing for block in model.module.model.layers] == [False, False]


def test_blocks_that_cannot_are_named() -> None:
    model = tiny("llama")
    model.module.model.layers[0] = torch.nn.Linear(2, 2)
    with pytest.raises(SettingError, match=r"train\.recompute.*Linear is none; set it to 0"), recomputing(model, 1.0):
        pass
