"""How far two models' next-token distributions are apart, over the whole vocabulary.

Both models' logits exist for a chunk of tokens at a time, and are computed again in the backward pass: two
tokens x vocabulary matrices are never held. Only the first model has gradients.

Legend: N supervised tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from temper.data.pack import Batch
from temper.models.model import Model
from temper.signals.forward import MAX_CHUNK_VALUES, hidden_states, logits_of
from temper.signals.reference import Reference

Comparison = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes the log-probabilities of two models, (C, V) each, and the targets (C,), returns (C, ...)."""


def kl(logp_CV: Tensor, logq_CV: Tensor) -> Tensor:
    """Return KL(p || q) = sum_v p_v (log p_v - log q_v), (C,)."""
    return (logp_CV.exp() * (logp_CV - logq_CV)).sum(1)


def mixed(logp_CV: Tensor, logq_CV: Tensor, share: float) -> Tensor:
    """Return log(share p + (1 - share) q), (C, V)."""
    if share in (0.0, 1.0):
        return logp_CV if share else logq_CV
    return torch.logaddexp(logp_CV + math.log(share), logq_CV + math.log1p(-share))


def compare(
    model: Model, reference: Reference, batch: Batch, reduce: Comparison, max_chunk_values: int = MAX_CHUNK_VALUES
) -> Tensor:
    """Compare two models' distributions at each supervised token.

    Args:
        model: has gradients.
        reference: has none.
        batch: what both read.
        reduce: takes the model's log-probabilities, then the reference's, then the targets.
        max_chunk_values: logits of either model held at once.

    Returns:
        (N, ...), differentiable.
    """
    reference_hidden_ND = reference.supervised_hidden(batch)
    hidden_ND = hidden_states(model, batch).index_select(0, batch.supervised_N)
    vocabulary = model.module.get_submodule(model.anatomy.head).weight.shape[0]
    per_chunk = max(1, max_chunk_values // vocabulary)

    def of_chunk(hidden_CD: Tensor, reference_hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        # Asked inside, for the backward pass computes a chunk again, when a past model's head is no longer in place.
        with reference.asked() as other:
            reference_CV = logits_of(other, reference_hidden_CD).log_softmax(1)
        return reduce(logits_of(model, hidden_CD).log_softmax(1), reference_CV, targets_C)

    parts = []
    wholes = (hidden_ND, reference_hidden_ND, batch.targets_N)
    for chunk in zip(*(whole.split(per_chunk) for whole in wholes), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(of_chunk, *chunk, use_reentrant=False))
        else:
            parts.append(of_chunk(*chunk))
    return torch.cat(parts)
