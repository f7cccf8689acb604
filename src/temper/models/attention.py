"""Attention over a flat run of documents, through the attention seam of transformers.

Decisions:
- The batch is one flat run of T tokens; inside attention only, documents of like length stand side by side
  as rows of one call, padded at their ends. Causality hides what is behind a document's end, so no mask is
  needed, and a document never sees another: packed = one by one, exactly.
- Regrouping is a permutation, so its gradient is one too: two index selections, no scatter, the same bits
  every time.
- A `PackedLayout` travels as an ordinary keyword of the model's forward. There is no global state: without it
  (generation) the same implementation is transformers' own SDPA.

Legend: T packed tokens, S slots (T and the padding inside groups), G documents of a group, L longest of a
group, H query heads, K key and value heads, E width of a head.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from temper.models import cpu_attention
from temper.models.autograd import apply
from temper.models.cpu_attention import Order, Regrouping

NAME = "temper_packed"

SHORT_DOCUMENT = 32
"""Documents up to this length share a group whatever their lengths: a call costs more than the padding."""
LEAST_FILL = 0.8
"""A longer document joins a group only if it fills this share of its row."""


@dataclass(frozen=True)
class Group:
    """Documents that stand side by side in one attention call."""

    start: int
    """its first slot"""
    num_documents: int
    length: int
    """slots of each document; the longest document fills them"""


@dataclass(frozen=True)
class PackedLayout:
    """Where each token of a flat run stands while attention is computed."""

    groups: tuple[Group, ...]
    regrouping: Regrouping | None = None
    """None: slots are tokens"""
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """sliding-window masks by (length, window), made once for all blocks"""
    is_causal: bool = True
    """whether a token sees only what precedes it, or its whole document"""
    orders: dict[int, Order] = field(default_factory=dict)
    """by number of heads, made once for all blocks"""

    def order(self, num_heads: int) -> Order:
        """Return where that many heads of each token stand in attention on a CPU."""
        if num_heads not in self.orders:
            shapes = [(group.num_documents, group.length) for group in self.groups]
            self.orders[num_heads] = Order.of(shapes, num_heads, self.regrouping)
        return self.orders[num_heads]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu", is_causal: bool = True) -> PackedLayout:
        """Group documents of `lengths` tokens, which follow one another in the flat run.

        Without causality only documents of one length share a group: nothing then hides padding.
        """
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        groups: list[Group] = []
        slots_of: list[NDArray[np.int64]] = []
        padding_of: list[NDArray[np.bool_]] = []
        total = 0
        while order:
            longest = lengths[order[0]]
            least = 0 if longest <= SHORT_DOCUMENT else longest * LEAST_FILL
            if not is_causal:
                least = longest
            members = sorted(index for index in order if lengths[index] >= least)
            taken = set(members)
            order = [index for index in order if index not in taken]
            first_G = np.array([starts[index] for index in members])
            length_G = np.array([lengths[index] for index in members])
            offset_GL = np.broadcast_to(np.arange(longest), (len(members), longest))
            slots_of.append((first_G[:, None] + np.minimum(offset_GL, length_G[:, None] - 1)).reshape(-1))
            padding_of.append((offset_GL >= length_G[:, None]).reshape(-1))
            groups.append(Group(total, len(members), longest))
            total += longest * len(members)
        slots_S, is_padding_S = np.concatenate(slots_of), np.concatenate(padding_of)
        if np.array_equal(slots_S, np.arange(starts[-1])):
            return PackedLayout(tuple(groups), is_causal=is_causal)
        inverse_T = np.empty(starts[-1], dtype=np.int64)
        inverse_T[slots_S[~is_padding_S]] = np.flatnonzero(~is_padding_S)
        slots, is_padding, inverse = (torch.from_numpy(one).to(device) for one in (slots_S, is_padding_S, inverse_T))
        return PackedLayout(tuple(groups), Regrouping(slots, is_padding, inverse), is_causal=is_causal)


def packed_inputs(read_T: Tensor, positions_T: Tensor, layout: PackedLayout) -> dict[str, Any]:
    """Return the keywords with which a decoder reads a flat run of tokens (T,), or of their embeddings (T, D)."""
    return {
        "input_ids" if read_T.ndim == 1 else "inputs_embeds": read_T[None],
        "position_ids": positions_T[None],
        # transformers returns a four-dimensional mask as it is, and so builds no tokens x tokens mask of its own.
        "attention_mask": torch.empty(1, 1, 1, 1, device=read_T.device),
        "use_cache": False,
        "packed": layout,
    }


class _ToSlots(torch.autograd.Function):
    """Tokens to slots. Padding slots get no gradient from causal attention, so they have none to give back."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, regrouping: Regrouping) -> Tensor:
        ctx.regrouping = regrouping
        return x_T.index_select(0, regrouping.slots_S)

    @staticmethod
    def backward(ctx: Any, *grad_S: Tensor) -> tuple[Tensor, None]:
        return grad_S[0].index_select(0, ctx.regrouping.inverse_T), None


class _ToTokens(torch.autograd.Function):
    """Slots to tokens. What stands in padding is dropped: its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x_S: Tensor, regrouping: Regrouping) -> Tensor:
        ctx.regrouping = regrouping
        return x_S.index_select(0, regrouping.inverse_T)

    @staticmethod
    def backward(ctx: Any, *grad_T: Tensor) -> tuple[Tensor, None]:
        grad_S = grad_T[0].index_select(0, ctx.regrouping.slots_S)
        return grad_S.masked_fill_(ctx.regrouping.is_padding_S[:, None, None], 0), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each document of a flat run, or as SDPA does where there is no layout.

    Args:
        query: (1, H, T, E); key and value: (1, K, T, E).
        packed: the documents' layout.
        sliding_window: how many tokens back a token sees, itself included; None for all.
        softcap: bound of the scores' tanh (Gemma 2).

    Returns:
        the attended values (1, T, H, E), and None for the weights.

    Raises:
        ValueError: attention sinks or a position bias, which this implementation does not compute.
    """
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not compute {name!r}, which this model family needs")
    if packed is None:
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        if attention_mask is None:
            attention_mask = _window_mask(query.shape[2], key.shape[2], None, query.device)
        out = _capped_attention(query, key, value, attention_mask, dropout, scaling, softcap)
        return out.transpose(1, 2).contiguous(), None

    dtype = _computed_in(query)
    flat = [heads.squeeze(0).transpose(0, 1).to(dtype) for heads in (query, key, value)]
    shapes = [(group.num_documents, group.length) for group in packed.groups]
    if query.device.type == "cpu" and dtype == torch.bfloat16 and packed.is_causal and softcap is None and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query_THE, key_TKE, value_TKE = flat
        orders = packed.order(query_THE.shape[1]), packed.order(key_TKE.shape[1])
        return cpu_attention.attend(query_THE, key_TKE, value_TKE, shapes, orders, scale, sliding_window)[None], None
    if packed.regrouping is not None:
        flat = [apply(_ToSlots, x, packed.regrouping) for x in flat]
    parts = []
    sizes = [math.prod(shape) for shape in shapes]
    for shape, *rows in zip(shapes, *(x.split(sizes) for x in flat), strict=True):
        query_GL, key_GL, value_GL = (x.unflatten(0, shape).transpose(1, 2) for x in rows)
        out = _attend(query_GL, key_GL, value_GL, packed, dropout, scaling, sliding_window, softcap)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    if packed.regrouping is not None:
        joined = apply(_ToTokens, joined, packed.regrouping)
    return joined[None].contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attend within rows: query (G, H, L, E), key and value (G, K, L, E) to (G, H, L, E)."""
    mask, length = None, query.shape[2]
    if (softcap is not None and layout.is_causal) or (window is not None and window < length):
        shape = (length, min(window or length, length))
        if shape not in layout.masks:
            mask = _window_mask(length, length, shape[1], query.device)
            layout.masks[shape] = mask if layout.is_causal else mask | mask.T
        mask = layout.masks[shape]
    if softcap is not None:
        return _capped_attention(query, key, value, mask, dropout, scaling, softcap)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and layout.is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _computed_in(x: Tensor) -> torch.dtype:
    """Return the type in which products of a tensor are computed: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _window_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return a boolean mask (queries, keys), true where a query sees a key: causal, at most `window` back."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None]
    return (key <= query) if window is None else (key <= query) & (key > query - window)


def _capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Attention whose scores are bounded by softcap * tanh(score / softcap); no fused kernel has it on a CPU."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh((query @ key.transpose(2, 3)) * (scale / softcap))
    if mask is not None:
        is_additive = mask.dtype != torch.bool
        scores = scores + mask if is_additive else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32), dropout)
    return weights.to(value.dtype) @ value


# On a CPU products are oneDNN's. It keeps code for each of the last 1024 shapes that it met, a third of a MiB each, and
# PyTorch keeps its own 1024 products with their scratch memory, scattered over the heap. Documents come in every
# length, so few shapes come back; making the code anew costs less than can be measured.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
