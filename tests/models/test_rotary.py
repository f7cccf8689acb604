"""The rotation as one function, in float64; and attention around it, against the families' own in transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from families import FAMILIES, tiny
from temper.models.attention import NAME
from temper.models.cache import CACHE_NAMES
from temper.models.norms import RMSNorm
from temper.models.rotary import RotaryAttention, draw_weights, equivalent, replace_attention, rotate

ROTARY = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2"}


def naive(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.double().chunk(2, -1)
    return x.double() * cos[:, :, None].double() + torch.cat([-second, first], -1) * sin[:, :, None].double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 7, 3, 10), (1, 33, 2, 64)])
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    # No relation between the halves is taken for granted.
    cos, sin = torch.randn(1, shape[1], shape[3]), torch.randn(1, shape[1], shape[3])
    own, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = rotate(own, cos, sin), naive(exact, cos, sin)
    assert out.dtype == dtype
    pairs = [(out, expected)]
    pairs += zip(
        torch.autograd.grad(out, own, upstream), torch.autograd.grad(expected, exact, upstream.double()), strict=True
    )
    for one, other in pairs:
        # Two products and a sum in float32; bf16 is rounded to once, to 1 in 256.
        bound = other.abs() * (2**-8 if dtype == torch.bfloat16 else 0) + 1e-5
        assert bool(((one.double() - other).abs() <= bound).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_familys_own(family: str) -> None:
    model = tiny(family)
    ours = model.module
    found = [module for module in ours.modules() if isinstance(module, RotaryAttention)]
    assert len(found) == (len(model.anatomy.blocks) if family in ROTARY else 0)
    plain: Any = AutoModelForCausalLM.from_config(copy.deepcopy(ours.config), attn_implementation="eager").eval()
    assert not [module for module in plain.modules() if isinstance(module, RotaryAttention | RMSNorm)]
    plain.load_state_dict(ours.state_dict())
    ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        logits = [one.train(training)(input_ids=ids).logits for one in (ours, plain)]
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    ours.set_attn_implementation("eager")
    torch.testing.assert_close(ours(input_ids=ids).logits, logits[1], rtol=1e-4, atol=1e-5)
    ours.set_attn_implementation(NAME)
    for one, out in zip((ours, plain), logits, strict=True):
        one.zero_grad()
        out.logsumexp(-1).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4)
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    written = [one.eval().generate(ids, **asked) for one in (ours, plain)]
    assert torch.equal(*written), "with what is kept of the tokens before"


class Doubled(LlamaAttention):
    """Projects something else."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(2 * hidden_states, *args, **kwargs)


class Blended(LlamaAttention):
    """Does something with what comes back."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, **kwargs)
        return out + 1, weights


class Partial(LlamaAttention):
    """Turns half of each head."""

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        cos, sin = (one.clone() for one in position_embeddings)
        cos[..., 4:], sin[..., 4:] = 1, 0
        return super().forward(hidden_states, (cos, sin), **kwargs)


class Other(LlamaAttention):
    """Reads what ours is not given."""

    def forward(self, hidden_states: Tensor, alibi: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states + alibi, **kwargs)


class Forgetful(LlamaAttention):
    """Keeps nothing of the tokens before."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **{name: value for name, value in kwargs.items() if name not in CACHE_NAMES})


class Windowed(LlamaAttention):
    """Sees less while it trains."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs, sliding_window=3 if self.training else None)


class Sometimes(LlamaAttention):
    """Turns nothing in every second block."""

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        if self.layer_idx % 2:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        return super().forward(hidden_states, (cos, sin), **kwargs)


def found_for(attention: nn.Module) -> RotaryAttention | None:
    return equivalent(attention, draw_weights(attention))


def small(kind: type[LlamaAttention]) -> Any:
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    return kind(config, 0)


def test_attention_is_replaced_only_by_one_that_computes_the_same() -> None:
    own = small(LlamaAttention)
    before = own.config._attn_implementation
    found = found_for(own)
    assert found is not None and dict(found.named_parameters()) == dict(own.named_parameters())
    assert found.get_parameter("q_proj.weight") is own.get_parameter("q_proj.weight")
    assert own.training and own.config._attn_implementation == before
    assert [found_for(small(kind)) for kind in (Doubled, Blended, Partial, Forgetful, Other)] == [None] * 5


def test_every_block_is_tried() -> None:
    """SmolLM3's way: blocks of one class and shape, of which some turn nothing."""
    model = tiny("llama")
    for number, block in enumerate(model.anatomy.blocks):
        theirs: Any = model.module.get_submodule(block.path)
        theirs.self_attn = Sometimes(model.module.config, number)
    replace_attention(model.module, model.anatomy)
    attentions = [model.module.get_submodule(f"{block.path}.self_attn") for block in model.anatomy.blocks]
    assert [isinstance(one, RotaryAttention) for one in attentions] == [True, False]


def test_an_attention_that_fails_is_left_as_it_was() -> None:
    class Failing(LlamaAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError

    own = small(Failing).eval()
    before = own.config._attn_implementation
    assert found_for(own) is None
    assert not own.training and own.config._attn_implementation == before


def test_what_a_block_hands_on_is_read_from_it() -> None:
    found = found_for(small(Windowed))
    assert found is not None
    assert {mode: handed["sliding_window"] for mode, handed in found.settings.items()} == {False: None, True: 3}
    assert all(handed["scaling"] == 8**-0.5 for handed in found.settings.values())
    seen: list[int | None] = []

    def note(module: nn.Module, query: Tensor, *args: Any, sliding_window: int | None, **kwargs: Any) -> Any:
        seen.append(sliding_window)
        return query.transpose(1, 2), None

    AttentionInterface.register("noted", note)
    found.config._attn_implementation = "noted"
    angles = torch.zeros(1, 5, 8)
    for training in (True, False):
        found.train(training)(torch.randn(1, 5, 16), (angles.cos(), angles.sin()))
    assert seen == [3, None]
