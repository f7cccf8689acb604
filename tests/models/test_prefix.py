"""A model's first blocks and the others apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from families import FAMILIES, tiny
from temper.data.pack import pack
from temper.models.attention import PackedLayout, packed_inputs
from temper.models.model import Model
from temper.models.prefix import behind, can_be_kept, num_frozen, output_of, tried
from temper.signals.forward import token_logprobs
from training import attach, examples

NUM_BLOCKS = 2


def frozen_below(model: Model, block: int) -> None:
    """Freeze the embedding and the blocks before one."""
    model.module.requires_grad_(False)
    for each in model.anatomy.blocks[block:]:
        model.module.get_submodule(each.path).requires_grad_(True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, NUM_BLOCKS])
def test_the_others_go_on_from_what_the_first_give(family: str, count: int) -> None:
    model, batch = tiny(family), pack(examples())
    read = packed_inputs(batch.tokens_T, batch.positions_T, PackedLayout.of(batch.lengths))
    names = [name for name, _ in model.module.named_parameters()]
    backbone = model.module.get_submodule(model.anatomy.backbone)
    expected = backbone(**read).last_hidden_state
    given_TD = output_of(model, count, read)
    assert given_TD.shape == (batch.num_tokens, 48) and not given_TD.requires_grad
    with behind(model, count, given_TD):
        assert torch.equal(backbone(**read).last_hidden_state, expected)
    with behind(model, count, given_TD + 1):
        assert not torch.equal(backbone(**read).last_hidden_state, expected)
    assert [name for name, _ in model.module.named_parameters()] == names
    assert torch.equal(backbone(**read).last_hidden_state, expected)
    assert tried(model, count) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_frozen_is_found_by_trying(family: str) -> None:
    for block in range(NUM_BLOCKS + 1):
        model = tiny(family)
        frozen_below(model, block)
        assert num_frozen(model) == block
    model = tiny(family)
    assert num_frozen(model) == 0
    attach({"lora": {"targets": ["1.*"]}}, model)
    assert num_frozen(model) == 1


def test_gradients_behind_frozen_blocks_are_the_same() -> None:
    found = []
    for skips in (False, True):
        model, batch = tiny("llama"), pack(examples())
        frozen_below(model, 1)
        if skips:
            read = packed_inputs(batch.tokens_T, batch.positions_T, PackedLayout.of(batch.lengths))
            with behind(model, 1, output_of(model, 1, read)):
                token_logprobs(model, batch).sum().backward()
        else:
            token_logprobs(model, batch).sum().backward()
        found.append({name: one.grad for name, one in model.module.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 5
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


def test_blocks_with_dropout_are_not_left_out_and_the_random_numbers_stay_as_they_were() -> None:
    model = tiny("gpt2")
    assert tried(model, 1) is not None
    for module in model.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    before = torch.random.get_rng_state()
    assert tried(model, 1) is None and not model.module.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_blocks_that_give_another_thing_each_time_are_told() -> None:
    model = tiny("opt")
    assert can_be_kept(model, 1)
    model.module.config.layerdrop = 0.1
    assert not can_be_kept(model, 1) and tried(model, 1) is None
    model = tiny("llama")
    for kind in ("dynamic", "longrope"):
        model.module.config.rope_parameters = {"rope_type": kind}
        assert not can_be_kept(model, 1)
        model.module.config.rope_parameters = {"full_attention": {"rope_type": kind}}
        assert not can_be_kept(model, 1)
    model.module.config.rope_parameters = {"rope_type": "linear"}
    assert can_be_kept(model, 1)


def test_numbers_for_blocks_that_are_never_asked_are_an_error() -> None:
    model = tiny("llama")
    with pytest.raises(RuntimeError, match=r"left out model.layers.0"), behind(model, 1, torch.zeros(3, 48)):
        pass
