"""Log-probabilities from hidden states, with neither logits nor their gradients held.

The projection to the vocabulary and the softmax behind it, forward and backward, a chunk of tokens at a time. Backward
needs the probabilities alone: d log p(t) / d logits = onehot(t) - p. Few logits are kept for it, many are computed
again. Softmax is computed in float32 whatever the products' type; its gradient is rounded to that type once, as it
would be before it is multiplied.

Legend: N supervised tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_VALUES = 2**25
"""logits of a chunk, 64 MiB in bf16: each chunk reads and writes the whole gradient of the weight, so few are made"""
SOFTMAX_VALUES = 2**20
"""logits that a CPU brings to float32 at once: 4 MiB, which stay in its cache"""
KEPT_VALUES = 2**24
"""logits that are kept for the backward pass where there are no more: 32 MiB in bf16"""


class Logprobs(torch.autograd.Function):
    """The log-probability in nats of each target: hidden (N, D), weight (V, D), targets (N,) to (N,), float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        scaled_ND, cast_VD = (hidden_ND * scale if scale != 1.0 else hidden_ND).to(dtype), weight_VD.to(dtype)
        is_kept = len(targets_N) * len(weight_VD) <= KEPT_VALUES and any(ctx.needs_input_grad)
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        kept: list[Tensor] = []
        rows = max(1, SOFTMAX_VALUES // len(weight_VD)) if hidden_ND.device.type == "cpu" else chunk
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits_CV = scaled_ND[part] @ cast_VD.t()
            for few in range(start, min(start + chunk, len(targets_N)), rows):
                # On a CPU this is four times as fast as logsumexp.
                logprobs_CV = torch.log_softmax(logits_CV[few - start : few - start + rows].float(), 1)
                targets_C = targets_N[few : min(few + rows, start + chunk)]
                logprobs_N[few : few + len(targets_C)] = logprobs_CV.gather(1, targets_C[:, None])[:, 0]
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
        cast_VD = weight_VD.to(ctx.dtype)
        grad_ND = torch.empty_like(scaled_ND) if wants_hidden else None
        grad_VD = torch.zeros_like(weight_VD) if wants_weight else None
        for number, start in enumerate(range(0, len(targets_N), ctx.chunk)):
            part = slice(start, start + ctx.chunk)
            logits_CV = kept[number] if kept else scaled_ND[part] @ cast_VD.t()
            slope_CV = torch.softmax(logits_CV, 1)
            slope_CV.scatter_add_(1, targets_N[part, None], slope_CV.new_full((len(slope_CV), 1), -1.0))
            # The incoming gradient goes to the smaller side of both products.
            if grad_ND is not None:
                grad_ND[part] = (slope_CV @ cast_VD) * -grad_N[part, None]
            if grad_VD is not None:
                grad_VD += slope_CV.t() @ (scaled_ND[part] * -grad_N[part, None]).to(ctx.dtype)
        if grad_ND is not None:
            grad_ND = (grad_ND * ctx.scale if ctx.scale != 1.0 else grad_ND).to(ctx.hidden_dtype)
        return grad_ND, grad_VD, None, None, None, None
