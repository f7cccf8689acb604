"""Causal attention in bf16 on a CPU, from matrix products.

PyTorch's fused attention loses time there, the more the shorter the documents; from 4,096 tokens on the two are equal
(`benchmarks/pieces.py`). Here a block of queries meets the keys up to its own end, so that the half of the scores that
causality hides is never computed beyond a block's corner; softmax is computed in float32 and kept in bf16.
Probabilities of up to `KEPT_UP_TO` tokens are kept for the backward pass, longer ones are computed again, a block at a
time, so memory grows with the length and not with its square.
All groups of a batch are one function: as a function each, their slices would cost as many zeroed copies of the whole
batch in the backward pass. One selection of rows brings the run into the order in which every group's heads are a
matrix each, and one brings it back; products write to where their results belong. Short documents cost what their
operations cost to call, so these are few.

Legend: T tokens of the run, S slots (T and the padding inside groups), G documents of a group, H query heads, K key
heads, R rows (documents x key heads), M query heads of a key head, L tokens of a document, E width of a head, N queries
of a block, C keys of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from temper.models.autograd import apply

BLOCK = 256
"""queries of a block"""
KEPT_UP_TO = 256
"""tokens of a document whose probabilities are kept"""

Shapes = Sequence[tuple[int, int]]
"""(documents, tokens of each) of groups that follow one another in the slots"""


@dataclass(frozen=True)
class Regrouping:
    """Slots that are not the tokens in their order."""

    slots_S: Tensor
    """int64, the token that stands in each slot (a document's last token in its padding)"""
    is_padding_S: Tensor
    inverse_T: Tensor
    """int64, the slot of each token"""


@dataclass(frozen=True)
class Order:
    """Where the heads of a run's tokens stand while attention is computed: those of a document one after another."""

    taken: Tensor
    """int64 (S H): the row of (T H, E) that stands in each row"""
    place: Tensor
    """int64 (T H): where each row of (T H, E) stands"""
    is_padding: Tensor | None
    """bool (S H, 1), None where no slot is padding"""
    num_heads: int

    @staticmethod
    def of(shapes: Shapes, num_heads: int, regrouping: Regrouping | None = None) -> Order:
        """Return the order of `num_heads` heads; without regrouping, slots are tokens."""
        slots = sum(math.prod(shape) for shape in shapes)
        heads = torch.arange(num_heads)
        # First of the slots, S H; then of the tokens that stand in them.
        taken = _by_head(torch.arange(slots * num_heads).view(slots, num_heads), shapes)
        place = torch.empty_like(taken).scatter_(0, taken, torch.arange(len(taken)))
        if regrouping is None:
            return Order(taken, place, None, num_heads)
        of_tokens = _by_head(regrouping.slots_S[:, None] * num_heads + heads, shapes)
        place = place[(regrouping.inverse_T[:, None] * num_heads + heads).flatten()]
        is_padding = _by_head(regrouping.is_padding_S[:, None].expand(-1, num_heads), shapes)
        return Order(of_tokens, place, is_padding[:, None], num_heads)

    def take(self, x_THE: Tensor) -> Tensor:
        """(T, H, E) to (S H, E)."""
        return x_THE.reshape(-1, x_THE.shape[-1]).index_select(0, self.taken)

    def give_back(self, rows: Tensor) -> Tensor:
        """(S H, E) to (T, H, E)."""
        return rows.index_select(0, self.place).view(-1, self.num_heads, rows.shape[-1])


def _by_head(x_SH: Tensor, shapes: Shapes) -> Tensor:
    """Bring the numbers of slots and heads into the order of the rows, (S H)."""
    groups = x_SH.split([math.prod(shape) for shape in shapes])
    return torch.cat(
        [group.unflatten(0, shape).transpose(1, 2).flatten() for group, shape in zip(groups, shapes, strict=True)]
    )


@dataclass(frozen=True)
class _Sight:
    """What a query sees."""

    window: int | None
    later: Tensor
    """(block, block), bf16: 0, and minus infinity for the keys that come after a query"""

    @staticmethod
    def of(shapes: Shapes, window: int | None) -> _Sight:
        size = min(BLOCK, max(length for _, length in shapes))
        return _Sight(window, torch.full((size, size), float("-inf"), dtype=torch.bfloat16).triu_(1))


def attend(
    query_THE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    shapes: Shapes,
    orders: tuple[Order, Order],
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attend causally within each document.

    Args:
        query_THE, key_TKE, value_TKE: bf16, H a multiple of K.
        shapes: the groups, which fill the slots.
        orders: of the query heads and of the key heads.
        scale: of the scores.
        window: how many tokens back a token sees, itself included; None for all.

    Returns:
        (T, H, E), bf16.
    """
    out_THE: Tensor = apply(_Attention, query_THE, key_TKE, value_TKE, shapes, orders, scale, window)
    return out_THE


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_THE: Tensor,
        key_TKE: Tensor,
        value_TKE: Tensor,
        shapes: Shapes,
        orders: tuple[Order, Order],
        scale: float,
        window: int | None,
    ) -> Tensor:
        of_query, of_key = orders
        query = of_query.take(query_THE).mul_(scale)  # once here: queries are narrower than scores
        key, value = of_key.take(key_TKE), of_key.take(value_TKE)
        out = torch.empty_like(query)
        kept: list[Tensor] = []
        sight = _Sight.of(shapes, window)
        for (_, length), *views in _groups(shapes, of_key.num_heads, query, out, key, value):
            kept += _forward(sight, length <= KEPT_UP_TO and any(ctx.needs_input_grad), *views)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, *kept)
        ctx.shapes, ctx.orders, ctx.scale, ctx.sight = shapes, orders, scale, sight
        return of_query.give_back(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        of_query, of_key = ctx.orders
        grad = of_query.take(grads[0])
        if of_query.is_padding is not None:
            grad.masked_fill_(of_query.is_padding, 0)
        found = [torch.empty_like(one) for one in (query, key, value)]
        taken = query, grad, found[0], key, value, found[1], found[2]
        for (_, length), *views in _groups(ctx.shapes, of_key.num_heads, *taken):
            num_kept = len(list(_blocks(length, None))) if length <= KEPT_UP_TO else 0
            _backward(ctx.sight, kept[:num_kept], *views)
            kept = kept[num_kept:]
        found[0].mul_(ctx.scale)
        back = (order.give_back(one) for order, one in zip((of_query, of_key, of_key), found, strict=True))
        return *back, None, None, None, None


def _groups(shapes: Shapes, num_key_heads: int, *rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """Yield each group's shape and its part of (S H, E) as (R, M, L, E), a view of the same memory."""
    slots = sum(math.prod(shape) for shape in shapes)
    parts = [one.split([math.prod(shape) * (len(one) // slots) for shape in shapes]) for one in rows]
    for shape, *group in zip(shapes, *parts, strict=True):
        documents, length = shape
        yield shape, *(one.view(documents * num_key_heads, -1, length, one.shape[1]) for one in group)


def _forward(
    sight: _Sight, is_kept: bool, query_RMLE: Tensor, out_RMLE: Tensor, key_R1LE: Tensor, value_R1LE: Tensor
) -> list[Tensor]:
    """Write the attended values, and return each block's weights where they are kept."""
    kept: list[Tensor] = []
    for block in _blocks(key_R1LE.shape[2], sight.window):
        weights_RNC = _weights(query_RMLE, key_R1LE, block, sight)
        _put(out_RMLE, block.queries, weights_RNC, _rows(value_R1LE, block.keys))
        if is_kept:
            kept.append(weights_RNC)
    return kept


def _backward(
    sight: _Sight,
    kept: list[Tensor],
    query_RMLE: Tensor,
    grad_RMLE: Tensor,
    grad_query: Tensor,
    key_R1LE: Tensor,
    value_R1LE: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    """Write the gradients of the scaled query, key and value."""
    blocks = list(enumerate(_blocks(key_R1LE.shape[2], sight.window)))
    # The last block sees every key where there is no window: what it finds is written, what the others find is added.
    sees_all = blocks[-1][1].keys.start == 0
    if not sees_all:
        grad_key.zero_()
        grad_value.zero_()
    for number, block in reversed(blocks):
        is_added = not sees_all or number < len(blocks) - 1
        weights_RNC = kept[number] if kept else _weights(query_RMLE, key_R1LE, block, sight)
        grad_RNE, query_RNE = _rows(grad_RMLE, block.queries), _rows(query_RMLE, block.queries)
        grad_weights = torch.bmm(grad_RNE, _rows(value_R1LE, block.keys).transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights_RNC, -1, weights_RNC.dtype)
        _put(grad_query, block.queries, grad_scores, _rows(key_R1LE, block.keys))
        _put(grad_key, block.keys, grad_scores.transpose(1, 2), query_RNE, is_added=is_added)
        _put(grad_value, block.keys, weights_RNC.transpose(1, 2), grad_RNE, is_added=is_added)


class _Block(NamedTuple):
    queries: slice
    keys: slice
    """that any of the queries sees"""


def _blocks(length: int, window: int | None) -> Iterator[_Block]:
    for start in range(0, length, BLOCK):
        stop = min(length, start + BLOCK)
        yield _Block(slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop))


def _weights(query_RMLE: Tensor, key_R1LE: Tensor, block: _Block, sight: _Sight) -> Tensor:
    """Return the attention of a block's queries on its keys, (R, M N, C)."""
    (start, stop), first = (block.queries.start, block.queries.stop), block.keys.start
    scores_RNC = torch.bmm(_rows(query_RMLE, block.queries), _rows(key_R1LE, block.keys).transpose(1, 2))
    by_head = scores_RNC.view(len(key_R1LE), -1, stop - start, stop - first)
    if sight.window is None:
        # Only the corner, where queries and keys are the same tokens, hides anything.
        by_head[..., start:].add_(sight.later[: stop - start, : stop - start])
    else:
        query_N, key_C = torch.arange(start, stop)[:, None], torch.arange(first, stop)[None]
        by_head.masked_fill_((key_C > query_N) | (key_C <= query_N - sight.window), float("-inf"))
    weights_RNC: Tensor = torch._softmax(scores_RNC, -1, False)
    return weights_RNC


def _rows(x_RMLE: Tensor, part: slice) -> Tensor:
    """Return some tokens, those of a key head's query heads under one another: (R, M N, E)."""
    return x_RMLE[:, :, part].flatten(1, 2)


def _put(into_RMLE: Tensor, part: slice, left: Tensor, right: Tensor, is_added: bool = False) -> None:
    """Write a product (R, M N, E), or add it, to where its tokens are."""
    rows, many, length, width = into_RMLE.shape
    if part.stop - part.start == length and not is_added:
        torch.bmm(left, right, out=into_RMLE.view(rows, many * length, width))
        return
    product = torch.bmm(left, right).view(rows, many, -1, width)
    target = into_RMLE[:, :, part]
    (target.add_ if is_added else target.copy_)(product)
