"""Causal attention of short documents in bf16 on a CPU, from matrix products.

PyTorch's fused attention loses time there, the more the shorter: three times at 32 tokens, a quarter at 512; from
1,024 on it is the faster one (`benchmarks/pieces.py`). Here a block of queries meets the keys up to its own end, so
that the half of the scores that causality hides is never computed beyond a block's corner; softmax is computed in
float32 and kept in bf16.
Probabilities of up to `KEPT_UP_TO` tokens are kept for the backward pass, longer ones are computed again, a block at a
time, so memory grows with the length and not with its square.

Legend: R rows (documents x key heads), M query heads of a key head, L tokens, E width of a head, N queries of a block,
C keys of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BEST_UP_TO = 512
"""tokens of the documents for which this is the faster way"""
BLOCK = 256
"""queries of a block"""
KEPT_UP_TO = 256
"""tokens of a document whose probabilities are kept"""


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Attend causally within each document.

    Args:
        query: (G, H, L, E); key and value (G, K, L, E), H a multiple of K. All bf16.
        scale: of the scores.
        window: how many tokens back a token sees, itself included; None for all.

    Returns:
        (G, H, L, E), bf16.
    """
    num_documents, num_heads, length, width = query.shape
    rows = num_documents * key.shape[1]
    query_RMLE = query.reshape(rows, -1, length, width)
    flat = (one.reshape(rows, length, width) for one in (key, value))
    out: Tensor = _Attention.apply(query_RMLE, *flat, scale, window)  # type: ignore[no-untyped-call]
    return out.view(num_documents, num_heads, length, width)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_RMLE: Tensor, key_RLE: Tensor, value_RLE: Tensor, scale: float, window: Any) -> Tensor:
        ctx.save_for_backward(query_RMLE, key_RLE, value_RLE)
        ctx.scale, ctx.window, ctx.kept = scale, window, []
        length = key_RLE.shape[1]
        is_kept = length <= KEPT_UP_TO and any(ctx.needs_input_grad)
        out_RMLE = torch.empty_like(query_RMLE)
        for start, stop, first in _blocks(length, window):
            weights_RNC = _weights(query_RMLE, key_RLE, start, stop, first, scale, window)
            out_RMLE[:, :, start:stop] = _apart(torch.bmm(weights_RNC, value_RLE[:, first:stop]), query_RMLE)
            if is_kept:
                ctx.kept.append(weights_RNC)
        return out_RMLE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_RMLE, key_RLE, value_RLE = ctx.saved_tensors
        grad_query, grad_key, grad_value = map(torch.zeros_like, (query_RMLE, key_RLE, value_RLE))
        for start, stop, first in _blocks(key_RLE.shape[1], ctx.window):
            if ctx.kept:
                weights_RNC = ctx.kept.pop(0)
            else:
                weights_RNC = _weights(query_RMLE, key_RLE, start, stop, first, ctx.scale, ctx.window)
            grad_RNE, query_RNE = (_together(one[:, :, start:stop]) for one in (grads[0], query_RMLE))
            grad_weights = torch.bmm(grad_RNE, value_RLE[:, first:stop].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights_RNC, -1, weights_RNC.dtype)
            grad_scores.mul_(ctx.scale)
            grad_query[:, :, start:stop] = _apart(torch.bmm(grad_scores, key_RLE[:, first:stop]), query_RMLE)
            grad_key[:, first:stop] += torch.bmm(grad_scores.transpose(1, 2), query_RNE)
            grad_value[:, first:stop] += torch.bmm(weights_RNC.transpose(1, 2), grad_RNE)
        return grad_query, grad_key, grad_value, None, None


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Yield each block's first query, the query after its last, and the first key that any of its queries sees."""
    for start in range(0, length, BLOCK):
        yield start, min(length, start + BLOCK), 0 if window is None else max(0, start - window + 1)


def _weights(
    query_RMLE: Tensor, key_RLE: Tensor, start: int, stop: int, first: int, scale: float, window: int | None
) -> Tensor:
    """Return the attention of a block's queries on the keys before and in it, (R, M N, C)."""
    scores_RNC = torch.bmm(_together(query_RMLE[:, :, start:stop]), key_RLE[:, first:stop].transpose(1, 2))
    scores_RNC.mul_(scale)
    by_head = scores_RNC.unflatten(1, (-1, stop - start))
    if window is None:
        # Only the corner, where queries and keys are the same tokens, hides anything.
        by_head[..., start - first :].masked_fill_(_later(stop - start), float("-inf"))
    else:
        query_N, key_C = torch.arange(start, stop)[:, None], torch.arange(first, stop)[None]
        by_head.masked_fill_((key_C > query_N) | (key_C <= query_N - window), float("-inf"))
    weights_RNC: Tensor = torch._softmax(scores_RNC, -1, False)
    return weights_RNC


def _later(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu_(1)


def _together(x_RMNE: Tensor) -> Tensor:
    """(R, M, N, E) to (R, M N, E): the query heads of a key head under one another."""
    return x_RMNE.flatten(1, 2)


def _apart(x_RNE: Tensor, like_RMLE: Tensor) -> Tensor:
    """(R, M N, E) to (R, M, N, E)."""
    return x_RNE.view(len(x_RNE), like_RMLE.shape[1], -1, x_RNE.shape[-1])
