"""Rotary positions as one function, in an attention module that takes the place of the family's.

As transformers writes it, turning queries and keys is eight operations on the way forward and eleven on the way back,
most of them in float32 over the whole tensor. Here it is five and five, and nothing is kept but the angles.

What a family's attention computes is found by trying: it is replaced only where the replacement hands on the same
queries, keys and values, and makes the same of what comes back. Which further settings a block hands on (scale,
window, cap of the scores) is read from what it does hand on, so that no family is named here.

Legend: T tokens, D width, H heads (of queries or of keys), E width of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, PreTrainedModel

from temper.models.anatomy import Anatomy
from temper.models.autograd import apply
from temper.models.cache import CACHE_NAMES

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
TRIED = "temper_tried"
"""name of the implementation of attention that only notes what it is given"""
TRIED_TOKENS = 5
Weights = dict[str, Tensor]
"""by the name of the parameter"""


class _Rotation(torch.autograd.Function):
    """(x_1 cos_1 - x_2 sin_1, x_2 cos_2 + x_1 sin_2) for the halves of each head, in the type of the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        (x_1, x_2), (sin_1, sin_2) = (wide := x.to(cos.dtype)).chunk(2, -1), sin.chunk(2, -1)
        return _turned(wide * cos, x_2, sin_1, x_1, sin_2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        (grad_1, grad_2), (sin_1, sin_2) = (wide := grads[0].to(cos.dtype)).chunk(2, -1), sin.chunk(2, -1)
        return _turned(wide * cos, grad_2, -sin_2, grad_1, -sin_1).to(grads[0].dtype), None, None


def _turned(straight: Tensor, second: Tensor, less: Tensor, first: Tensor, more: Tensor) -> Tensor:
    """Take a product from the first half of each head and add one to the second, in place."""
    left, right = straight.chunk(2, -1)
    left.addcmul_(second, less, value=-1)
    right.addcmul_(first, more)
    return straight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the heads of queries or keys by the angles of their tokens.

    Source: RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864; in halves, as GPT-NeoX.

    Args:
        x: (1, T, H, E).
        cos, sin: (1, T, E), of the angles.

    Returns:
        (1, T, H, E), in the type of x, computed in that of the angles.
    """
    out: Tensor = apply(_Rotation, x, cos.unsqueeze(2), sin.unsqueeze(2))
    return out


class RotaryAttention(nn.Module):
    """Projections and their norms, the rotation, attention as the configuration names it, and the way out.

    Args:
        of: the family's module; its modules and attributes are taken over under their names.
        settings: what it hands to attention besides queries, keys, values and mask, by whether it trains.
        cache_name: the name under which the family's blocks hand on keys and values of the tokens before.
    """

    def __init__(self, of: nn.Module, settings: dict[bool, dict[str, Any]], cache_name: str) -> None:
        super().__init__()
        self.config: Any
        self.head_dim: int
        self.layer_idx: int
        for name, value in vars(of).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        for name, child in of.named_children():
            self.add_module(name, child)
        self.settings = settings
        self.cache_name = cache_name
        self.eager: Any = getattr(sys.modules[type(of).__module__], "eager_attention_forward", None)
        """the family's own attention without a kernel, which the seam of transformers does not know"""
        width = {name: of.get_parameter(f"{name}.weight").numel() for name, _ in of.named_children() if name in NORMS}
        self.norms_of_a_head = {name for name, features in width.items() if features == self.head_dim}
        """the others are over all heads at once"""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        cache = kwargs.pop(self.cache_name, None)
        query, key = (rotate(self._heads(hidden_states, name), *position_embeddings).transpose(1, 2) for name in "qk")
        value = self._heads(hidden_states, "v").transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = AttentionInterface().get_interface(self.config._attn_implementation, self.eager)
        out, weights = attend(self, query, key, value, attention_mask, **self.settings[self.training], **kwargs)
        return self.get_submodule("o_proj")(out.reshape(*hidden_states.shape[:-1], -1)), weights

    def _heads(self, hidden_states: Tensor, name: str) -> Tensor:
        """Return queries, keys or values, (1, T, H, E)."""
        projected: Tensor = self.get_submodule(f"{name}_proj")(hidden_states)
        heads = projected.view(*projected.shape[:-1], -1, self.head_dim)
        norm = self._modules.get(f"{name}_norm")
        if norm is None:
            return heads
        normed: Tensor = norm(heads if f"{name}_norm" in self.norms_of_a_head else projected)
        return normed.view(heads.shape)


def replace_attention(module: PreTrainedModel, anatomy: Anatomy) -> None:
    """Put a `RotaryAttention` in the place of every attention that computes the same; names and weights stay."""
    drawn: Weights = {}
    for block in anatomy.blocks:
        parent = module.get_submodule(block.path)
        for name, child in parent.named_children():
            if {own for own, _ in child.named_children()} - NORMS == PROJECTIONS:
                shapes = {key: weight.shape for key, weight in child.named_parameters()}
                if shapes != {key: weight.shape for key, weight in drawn.items()}:
                    drawn = draw_weights(child)
                found = equivalent(child, drawn)
                if found is not None:
                    setattr(parent, name, found)


def draw_weights(attention: nn.Module) -> Weights:
    """Return random weights of an attention's shapes, to try it with: drawn once for all blocks that are alike."""
    generator = torch.Generator().manual_seed(0)
    with _disable_current_modes():
        return {
            name: torch.randn(weight.shape, generator=generator, device="cpu") / weight.shape[-1] ** 0.5
            for name, weight in attention.named_parameters()
        }


def equivalent(attention: nn.Module, weights: Weights) -> RotaryAttention | None:
    """Return the `RotaryAttention` over the same modules that computes what an attention does; None if there is none.

    Each block is tried: blocks of one class may differ, as where every fourth turns nothing.

    Args:
        weights: what it is tried with.
    """
    blank = {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}
    # Tried on numbers even while a model is built from tensors without content.
    with _disable_current_modes(), torch.no_grad():
        try:
            name = next(name for name in CACHE_NAMES if _try(attention, False, blank, name).has_kept)
            settings = {mode: _try(attention, mode, blank, name).settings for mode in (False, True)}
            own = RotaryAttention(attention, settings, name)
            theirs, ours = (_try(one, False, weights, name) for one in (attention, own))
            return own if theirs.is_near(ours) else None
        except Exception:  # another family's attention, which reads or hands on something else: it stays as it is
            return None


class _Kept:
    """Keys and values of as many tokens before, the same backwards."""

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([key.flip(-2), key], -2), torch.cat([value.flip(-2), value], -2)


class _Tried:
    """What an attention hands on, and what it makes of what comes back.

    Attributes:
        has_kept: whether it has handed on the keys and values of tokens before.
    """

    def __init__(self, handed: dict[str, Any], out: Tensor) -> None:
        self.tensors = [handed.pop(name) for name in ("query", "key", "value")] + [out]
        self.has_kept = self.tensors[1].shape[-2] == self.tensors[2].shape[-2] == 2 * TRIED_TOKENS
        self.settings = handed

    def is_near(self, other: _Tried) -> bool:
        return self.settings == other.settings and all(
            one.shape == its.shape and torch.allclose(one, its, rtol=1e-4, atol=1e-5)
            for one, its in zip(self.tensors, other.tensors, strict=True)
        )


def _try(attention: Any, is_training: bool, weights: Weights, cache_name: str) -> _Tried:
    """Run an attention on random numbers, on none where the weights have none, with a cache under a name."""
    width = weights["q_proj.weight"].shape[1]
    device = weights["q_proj.weight"].device
    generator = torch.Generator().manual_seed(1)
    hidden, angle = (
        torch.randn(1, TRIED_TOKENS, size, generator=generator, device="cpu").to(device)
        for size in (width, attention.head_dim)
    )
    handed: dict[str, Any] = {}
    with _as_tried(attention, is_training):
        out, _ = functional_call(
            attention,
            weights,
            kwargs={
                "hidden_states": hidden,
                "position_embeddings": (angle.cos(), angle.sin()),
                "attention_mask": None,
                cache_name: _Kept(),
                "tried": handed,
            },
        )
    return _Tried(handed, out)


@contextmanager
def _as_tried(attention: Any, is_training: bool) -> Iterator[None]:
    """Let an attention hand on to `_note`, and leave it as it was."""
    config, mode = attention.config, attention.training
    before = config._attn_implementation
    config._attn_implementation = TRIED
    attention.train(is_training)
    try:
        yield
    finally:
        attention.train(mode)
        config._attn_implementation = before


def _note(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, tried: dict[str, Any], **settings: Any
) -> tuple[Tensor, None]:
    """Note what attention is given; the queries are what comes back."""
    tried.update(query=query, key=key, value=value, **settings)
    return query.transpose(1, 2).contiguous(), None


AttentionInterface.register(TRIED, _note)
