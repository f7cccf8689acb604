"""S2FT: permutations that change nothing, slices that train, and what the backward pass holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from families import FAMILIES, tiny
from temper.models.model import Model
from temper.models.permute import inverse, permute_channels, permute_heads
from temper.tune.s2ft import S2FT
from training import attach, make_loop, moved, outputs


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_permutation_changes_no_output_and_is_undone_bit_for_bit(family: str) -> None:
    model = tiny(family)
    base, before = outputs(model), state(model)
    orders = []
    for block in model.anatomy.blocks:
        heads = torch.arange(block.num_kv_heads).flip(0)
        channels = torch.randperm(next(p.in_features for p in block.parts if p.name == "down"))
        permute_heads(model.module, block, heads)
        permute_channels(model.module, block, channels)
        orders.append((block, heads, channels))
    assert not torch.equal(state(model)[f"{block.parts[0].path}.weight"], before[f"{block.parts[0].path}.weight"])
    # Sums over the same products in another order, in float32.
    torch.testing.assert_close(outputs(model), base, atol=2e-5, rtol=1e-5)
    for block, heads, channels in orders:
        permute_heads(model.module, block, inverse(heads))
        permute_channels(model.module, block, inverse(channels))
    assert torch.equal(outputs(model), base)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_permuting_half_of_what_is_coupled_is_noticed() -> None:
    """The control: v's rows without o's columns."""
    model = tiny("llama")
    base = outputs(model)
    weight = model.module.model.layers[0].self_attn.v_proj.weight
    with torch.no_grad():
        weight.copy_(weight.roll(weight.shape[0] // 2, 0))
    assert not torch.allclose(outputs(model), base, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_dense_one_at_the_chosen_columns(family: str) -> None:
    model, dense = tiny(family), tiny(family)
    tuning = S2FT(head_share=0.5, channel_share=0.2).attach(model, seed=4)
    dense.module.requires_grad_(True)
    tokens = torch.arange(4, 40)[None]
    for module in (model.module, dense.module):
        module(tokens).logits.square().mean().backward()
    for each in tuning.slices:
        whole = dense.module.get_submodule(each.part.path).weight.grad
        whole_OI = whole.T if each.part.is_transposed else whole
        torch.testing.assert_close(each.delta_OS.grad, whole_OI[:, each.columns_S], atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize("choose", ["random", "weight"])
def test_only_the_chosen_columns_move_and_detached_is_the_base(tmp_path: Path, choose: str) -> None:
    model = tiny("llama")
    before = state(model)
    loop = make_loop(tmp_path, model, tune={"s2ft": {"choose": choose}})
    loop.run()
    tuning = loop.tuning
    tuning.save(tmp_path)
    columns = {each.part.path: set(each.columns_S.tolist()) for each in tuning.slices}
    tuning.merge()
    for name, value in state(model).items():
        changed = torch.nonzero((value != before[name]).reshape(len(value), -1).any(0))[:, 0].tolist()
        assert set(changed) == columns.get(name.removesuffix(".weight"), set()), name
    base = tiny("llama")
    PeftModel.from_pretrained(base.module, str(tmp_path / "delta"))
    torch.testing.assert_close(outputs(base), outputs(model), atol=2e-5, rtol=1e-5)
    again = tiny("llama")
    other = attach({"s2ft": {"choose": choose}}, again)
    moved(other)
    outputs(again)
    other.detach()
    assert all(torch.equal(value, before[name]) for name, value in state(again).items())


def test_weights_choose_the_heaviest() -> None:
    model = tiny("gpt2")
    heavy = model.module.transformer.h[1].mlp.c_proj.weight
    with torch.no_grad():
        heavy[17] *= 50
        model.module.transformer.h[0].attn.c_proj.weight[24:36] *= 50
    tuning = S2FT(head_share=0.25, channel_share=0.01, choose="weight").attach(model)
    assert tuning.slices[3].columns_S.tolist() == [17]
    assert tuning.slices[0].columns_S.tolist() == list(range(24, 36))


def saved_bytes(tune: object) -> int:
    """What autograd saves for a backward pass besides parameters."""
    model = tiny("llama", num_hidden_layers=4)
    attach(tune, model).hold_in(torch.float32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.module(torch.arange(4, 97).repeat(1, 1)).logits.square().mean()
    loss.backward()
    return sum(found.values())


def test_the_backward_pass_holds_less_than_loras_and_full_tunings() -> None:
    ours, lora, full = (saved_bytes(tune) for tune in ("s2ft", {"lora": {"rank": 4}}, "full"))
    assert ours < 0.9 * lora and ours < 0.75 * full, (ours, lora, full)


def test_the_optimizer_holds_state_for_the_slices_alone(tmp_path: Path) -> None:
    def held(tune: object) -> int:
        loop = make_loop(tmp_path / str(tune), tune=tune, num_steps=1)
        loop.run()
        return sum(v.numel() for state in loop.optimizer.state.values() for v in state.values() if v.ndim)

    model = tiny("llama")
    slices = S2FT().attach(model).slices
    assert held("s2ft") == 2 * sum(each.delta_OS.numel() for each in slices)
    assert held("full") > 10 * held("s2ft")
