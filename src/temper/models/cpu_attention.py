"""Causal attention in bf16 on a CPU, from matrix products.

PyTorch's fused attention loses time there, the more the shorter the documents; from 4,096 tokens on the two are equal
(`benchmarks/pieces.py`). Here a block of queries meets the keys up to its own end, so that the half of the scores that
causality hides is never computed beyond a block's corner; softmax is computed in float32 and kept in bf16.
Probabilities of up to `KEPT_UP_TO` tokens are kept for the backward pass, longer ones are computed again, a block at a
time, so memory grows with the length and not with its square.
All groups of a batch are one function: as a function each, their slices would cost as many zeroed copies of the whole
batch in the backward pass.

Legend: S slots, G documents of a group, H query heads, K key heads, R rows (documents x key heads), M query heads of a
key head, L tokens, E width of a head, N queries of a block, C keys of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
    query_SHE: Tensor, key_SKE: Tensor, value_SKE: Tensor, shapes: Shapes, scale: float, window: int | None = None
) -> Tensor:
    """Attend causally within each document.

    Args:
        query_SHE, key_SKE, value_SKE: bf16, H a multiple of K.
        shapes: the groups, which fill the slots.
        scale: of the scores.
        window: how many tokens back a token sees, itself included; None for all.

    Returns:
        (S, H, E), bf16.
    """
    out_SHE: Tensor = apply(_Attention, query_SHE, key_SKE, value_SKE, shapes, scale, window)
    return out_SHE


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_SHE: Tensor,
        key_SKE: Tensor,
        value_SKE: Tensor,
        shapes: Shapes,
        scale: float,
        window: int | None,
    ) -> Tensor:
        out_SHE = torch.empty_like(query_SHE, memory_format=torch.contiguous_format)
        saved: list[Tensor] = []
        sight = _Sight.of(shapes, window)
        for part, shape in _parts(shapes):
            key_RLE, value_RLE = _rows(key_SKE[part], shape), _rows(value_SKE[part], shape)
            # Scaled once: queries are narrower than scores.
            query_RMLE = _rows(query_SHE[part] * scale, shape).view(len(key_RLE), -1, *key_RLE.shape[1:])
            out_RMLE, kept = _forward(query_RMLE, key_RLE, value_RLE, sight)
            _put(out_SHE[part], out_RMLE, shape)
            is_kept = shape[1] <= KEPT_UP_TO and any(ctx.needs_input_grad)
            saved += [query_RMLE, key_RLE, value_RLE, *(kept if is_kept else [])]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*saved)
        ctx.shapes, ctx.scale, ctx.sight = shapes, scale, sight
        return out_SHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_SHE,) = grads
        saved = list(ctx.saved_tensors)
        num_slots, num_heads, width = grad_SHE.shape
        grad_query = grad_SHE.new_empty(num_slots, num_heads, width)
        num_key_heads = len(saved[1]) // ctx.shapes[0][0]
        grad_key, grad_value = (grad_SHE.new_empty(num_slots, num_key_heads, width) for _ in range(2))
        for part, shape in _parts(ctx.shapes):
            query_RMLE, key_RLE, value_RLE = (saved.pop(0) for _ in range(3))
            num_kept = len(list(_blocks(shape[1], ctx.sight.window))) if shape[1] <= KEPT_UP_TO else 0
            kept = [saved.pop(0) for _ in range(num_kept)]
            grad_RMLE = _rows(grad_SHE[part], shape).view_as(query_RMLE)
            found = _backward(grad_RMLE, query_RMLE, key_RLE, value_RLE, kept, ctx.sight)
            for grad, one in zip((grad_query, grad_key, grad_value), found, strict=True):
                _put(grad[part], one, shape)
        grad_query.mul_(ctx.scale)
        return grad_query, grad_key, grad_value, None, None, None


def _parts(shapes: Shapes) -> Iterator[tuple[slice, tuple[int, int]]]:
    start = 0
    for documents, length in shapes:
        yield slice(start, start + documents * length), (documents, length)
        start += documents * length


def _rows(x_SHE: Tensor, shape: tuple[int, int]) -> Tensor:
    """(G L, H, E) to (G H, L, E)."""
    heads_first: Tensor = x_SHE.unflatten(0, shape).transpose(1, 2)
    return heads_first.reshape(-1, shape[1], x_SHE.shape[-1])


def _put(into_SHE: Tensor, rows: Tensor, shape: tuple[int, int]) -> None:
    """Write (G H, L, E), or the same with its heads apart, where `_rows` took it from."""
    heads, width = into_SHE.shape[1:]
    into_SHE.unflatten(0, shape).copy_(rows.view(shape[0], heads, shape[1], width).transpose(1, 2))


def _forward(query_RMLE: Tensor, key_RLE: Tensor, value_RLE: Tensor, sight: _Sight) -> tuple[Tensor, list[Tensor]]:
    """Return the attended values (R, M, L, E), and each block's weights."""
    parts, kept = [], []
    for start, stop, first in _blocks(key_RLE.shape[1], sight.window):
        weights_RNC = _weights(query_RMLE, key_RLE, (start, stop, first), sight)
        parts.append(_apart(torch.bmm(weights_RNC, value_RLE[:, first:stop]), query_RMLE))
        kept.append(weights_RNC)
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)), kept


def _backward(
    grad_RMLE: Tensor,
    query_RMLE: Tensor,
    key_RLE: Tensor,
    value_RLE: Tensor,
    kept: list[Tensor],
    sight: _Sight,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the scaled query, key and value."""
    parts = []
    grad_key, grad_value = torch.zeros_like(key_RLE), torch.zeros_like(value_RLE)
    for number, (start, stop, first) in enumerate(_blocks(key_RLE.shape[1], sight.window)):
        block = (start, stop, first)
        weights_RNC = kept[number] if kept else _weights(query_RMLE, key_RLE, block, sight)
        grad_RNE, query_RNE = (_together(one[:, :, start:stop]) for one in (grad_RMLE, query_RMLE))
        grad_weights = torch.bmm(grad_RNE, value_RLE[:, first:stop].transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights_RNC, -1, weights_RNC.dtype)
        parts.append(_apart(torch.bmm(grad_scores, key_RLE[:, first:stop]), query_RMLE))
        grad_key[:, first:stop] += torch.bmm(grad_scores.transpose(1, 2), query_RNE)
        grad_value[:, first:stop] += torch.bmm(weights_RNC.transpose(1, 2), grad_RNE)
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)), grad_key, grad_value


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Yield each block's first query, the query after its last, and the first key that any of its queries sees."""
    for start in range(0, length, BLOCK):
        yield start, min(length, start + BLOCK), 0 if window is None else max(0, start - window + 1)


def _weights(query_RMLE: Tensor, key_RLE: Tensor, block: tuple[int, int, int], sight: _Sight) -> Tensor:
    """Return the attention of a block's queries on the keys before and in it, (R, M N, C)."""
    start, stop, first = block
    scores_RNC = torch.bmm(_together(query_RMLE[:, :, start:stop]), key_RLE[:, first:stop].transpose(1, 2))
    by_head = scores_RNC.unflatten(1, (-1, stop - start))
    if sight.window is None:
        # Only the corner, where queries and keys are the same tokens, hides anything.
        by_head[..., start - first :] += sight.later[: stop - start, : stop - start]
    else:
        query_N, key_C = torch.arange(start, stop)[:, None], torch.arange(first, stop)[None]
        by_head.masked_fill_((key_C > query_N) | (key_C <= query_N - sight.window), float("-inf"))
    weights_RNC: Tensor = torch._softmax(scores_RNC, -1, False)
    return weights_RNC


def _together(x_RMNE: Tensor) -> Tensor:
    """(R, M, N, E) to (R, M N, E): the query heads of a key head under one another."""
    return x_RMNE.flatten(1, 2)


def _apart(x_RNE: Tensor, like_RMLE: Tensor) -> Tensor:
    """(R, M N, E) to (R, M, N, E)."""
    return x_RNE.view(len(x_RNE), like_RMLE.shape[1], -1, x_RNE.shape[-1])
