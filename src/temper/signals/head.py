"""Log-probabilities from hidden states, with neither logits nor their gradients held.

The projection to the vocabulary and the softmax behind it, forward and backward, a chunk of tokens at a time. Softmax
is computed in float32 whatever the products' type; its gradient is rounded to that type once, as it would be before it
is multiplied. d log p(t) / d logits = onehot(t) - p needs the probabilities alone:

- `SummedLogprobs` knows how much each token counts, so it makes the gradients while it has the logits: three products.
- `Logprobs` learns that in the backward pass. Few logits are kept for it, many are computed again: a fourth product.

Legend: N supervised tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from temper.models.pages import empty, zeros

CHUNK_VALUES = 2**25
"""logits of a chunk, 64 MiB in bf16: each chunk reads and writes the whole gradient of the weight, so few are made"""
SOFTMAX_VALUES = 2**20
"""logits that a CPU brings to float32 at once: 4 MiB, which stay in its cache"""
PRODUCT_VALUES = 2**21
"""entries of the weight that a CPU's product reads in another type, or of its gradient that one makes: the copy stays
in the cache. A whole gradient took its memory one and a half times more and up to twice the time"""
GPU_PRODUCT_VALUES = 2**27
"""the same elsewhere, where a product costs more to begin"""
KEPT_VALUES = 2**24
"""logits that are kept for the backward pass where there are no more: 32 MiB in bf16"""


class SummedLogprobs(torch.autograd.Function):
    """Sum of weight times log-probability, and the log-probabilities.

    hidden (N, D), weight (V, D), targets (N,), counts (N,), how much each token counts, to a scalar, which is
    differentiable, and (N,), which is not; both float32, in nats. Where `into` (V, D) is given the weight's gradient is
    added to it at once: `factor` is then by what the scalar will be multiplied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        counts_N: Tensor,
        scale: float,
        chunk: int,
        dtype: torch.dtype,
        into_VD: Tensor | None = None,
        factor: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        scaled_ND = _scaled(hidden_ND, scale, dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        slopes_N = counts_N * factor
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        grad_ND = torch.empty_like(scaled_ND, dtype=_type_of_sums(weight_VD, dtype)) if wants_hidden else None
        grad_VD = into_VD if into_VD is not None else zeros(weight_VD, *weight_VD.shape) if wants_weight else None
        parts = _like_parts(len(targets_N), chunk)
        buffer_CV = empty(scaled_ND, parts[0].stop if parts else 0, len(weight_VD))
        for part in parts:
            logits_CV = buffer_CV[: len(targets_N[part])]
            _project(scaled_ND[part], weight_VD, logits_CV)
            for few in _parts(len(logits_CV), _rows(logits_CV)):
                targets_C, counts_C = targets_N[part][few, None], slopes_N[part][few, None]
                logs_CV = torch.log_softmax(logits_CV[few].float(), 1)
                logprobs_N[part][few] = logs_CV.gather(1, targets_C)[:, 0]
                if wants_hidden or wants_weight:
                    slope_CV = logs_CV.exp_().mul_(-counts_C).scatter_add_(1, targets_C, counts_C)
                    logits_CV[few] = slope_CV
            if grad_ND is not None:
                _project_back(logits_CV, weight_VD, grad_ND[part])
            if grad_VD is not None:
                _add_product(grad_VD, logits_CV, scaled_ND[part])
        if grad_ND is not None:
            grad_ND = (grad_ND * scale if scale != 1.0 else grad_ND).to(hidden_ND.dtype)
        ctx.is_added = into_VD is not None
        ctx.save_for_backward(grad_ND, None if ctx.is_added else grad_VD)
        ctx.mark_non_differentiable(logprobs_N)
        return (logprobs_N * counts_N).sum(), logprobs_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for the weight's is large; a second pass backward is an error then, not a wrong number.
        grad_ND, grad_VD = ctx.saved_tensors
        if not ctx.is_added:
            grad_ND, grad_VD = (None if one is None else one.mul_(grads[0]) for one in (grad_ND, grad_VD))
        return grad_ND, grad_VD, *(None,) * 7


class Logprobs(torch.autograd.Function):
    """The log-probability in nats of each target: hidden (N, D), weight (V, D), targets (N,) to (N,), float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        scaled_ND = _scaled(hidden_ND, scale, dtype)
        is_kept = len(targets_N) * len(weight_VD) <= KEPT_VALUES and any(ctx.needs_input_grad)
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        kept: list[Tensor] = []
        for part in _like_parts(len(targets_N), chunk):
            logits_CV = _logits(scaled_ND[part], weight_VD)
            for few in _parts(len(logits_CV), _rows(logits_CV)):
                # On a CPU this is four times as fast as logsumexp.
                logs_CV = torch.log_softmax(logits_CV[few].float(), 1)
                logprobs_N[part][few] = logs_CV.gather(1, targets_N[part][few, None])[:, 0]
            if is_kept:
                kept.append(logits_CV)
        ctx.save_for_backward(scaled_ND, weight_VD, targets_N, *kept)
        ctx.scale, ctx.chunk, ctx.dtype, ctx.hidden_dtype = scale, chunk, dtype, hidden_ND.dtype
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = grads
        scaled_ND, weight_VD, targets_N, *kept = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_ND = torch.empty_like(scaled_ND, dtype=_type_of_sums(weight_VD, ctx.dtype)) if wants_hidden else None
        grad_VD = zeros(weight_VD, *weight_VD.shape) if wants_weight else None
        for number, part in enumerate(_like_parts(len(targets_N), ctx.chunk)):
            logits_CV = kept[number] if kept else _logits(scaled_ND[part], weight_VD)
            slope_CV = torch.empty_like(logits_CV)
            for few in _parts(len(logits_CV), _rows(logits_CV)):
                # Rounded once p - 1 is known: in bf16, 1 - p of a token that is nearly certain would be lost.
                probs_CV = torch.softmax(logits_CV[few].float(), 1)
                targets_C1 = targets_N[part][few, None]
                slope_CV[few] = probs_CV.scatter_add_(1, targets_C1, probs_CV.new_full((len(probs_CV), 1), -1.0))
            # The incoming gradient goes to the smaller side of both products.
            if grad_ND is not None:
                _project_back(slope_CV, weight_VD, grad_ND[part])
                grad_ND[part] *= -grad_N[part, None]
            if grad_VD is not None:
                _add_product(grad_VD, slope_CV, (scaled_ND[part] * -grad_N[part, None]).to(ctx.dtype))
        if grad_ND is not None:
            grad_ND = (grad_ND * ctx.scale if ctx.scale != 1.0 else grad_ND).to(ctx.hidden_dtype)
        return grad_ND, grad_VD, None, None, None, None


def _scaled(hidden_ND: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (hidden_ND * scale if scale != 1.0 else hidden_ND).to(dtype)


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    logits_CV = hidden_CD.new_empty(len(hidden_CD), len(weight_VD))
    _project(hidden_CD, weight_VD, logits_CV)
    return logits_CV


def _project(hidden_CD: Tensor, weight_VD: Tensor, into_CV: Tensor) -> None:
    """Write hidden weight', in the type of hidden; no more of the weight is brought to that type than a product
    reads."""
    for words in _words(weight_VD, is_whole=weight_VD.dtype == hidden_CD.dtype):
        torch.mm(hidden_CD, weight_VD[words].to(hidden_CD.dtype).t(), out=into_CV[:, words])


def _project_back(slope_CV: Tensor, weight_VD: Tensor, into_CD: Tensor) -> None:
    """Write slope weight; the products of parts of the weight are added up in float32."""
    if weight_VD.dtype == slope_CV.dtype:
        torch.mm(slope_CV, weight_VD, out=into_CD)
        return
    into_CD.zero_()
    for words in _words(weight_VD):
        into_CD += slope_CV[:, words] @ weight_VD[words].to(slope_CV.dtype)


def _type_of_sums(weight_VD: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if weight_VD.dtype == dtype else torch.float32


def _words(weight_VD: Tensor, is_whole: bool = False) -> list[slice]:
    """Return the parts of a matrix that products are made of, one after another."""
    vocabulary, width = weight_VD.shape
    values = PRODUCT_VALUES if weight_VD.device.type == "cpu" else GPU_PRODUCT_VALUES
    return _parts(vocabulary, vocabulary if is_whole else max(1, values // width))


def _add_product(grad_VD: Tensor, slope_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add slope' hidden to the weight's gradient, some rows of it at a time."""
    for words in _words(grad_VD):
        grad_VD[words] += slope_CV[:, words].t() @ hidden_CD


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _like_parts(count: int, most: int) -> list[slice]:
    """Return parts of no more than `most`, as few as can be and as long as one another, the first no shorter."""
    return _parts(count, -(-count // max(1, -(-count // most)))) if count else []


def _rows(logits_CV: Tensor) -> int:
    """Return how many tokens' softmax is computed at once."""
    tokens, vocabulary = logits_CV.shape
    return max(1, SOFTMAX_VALUES // vocabulary) if logits_CV.device.type == "cpu" else tokens
