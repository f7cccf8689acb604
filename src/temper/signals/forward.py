"""The forward primitive: what a model says of the supervised tokens of a packed batch.

Logits exist for supervised tokens only, a chunk at a time, and are computed again in the backward pass, so that a
tokens x vocabulary matrix is never held (but where it is small: `head.py`). Everything that needs logits is a
*reduction* of a chunk: log-probabilities here; entropies, divergences and top-k elsewhere, through the same door.

Legend: T packed tokens, N supervised tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from temper.data.pack import Batch
from temper.models.attention import PackedLayout, packed_inputs
from temper.models.autograd import apply
from temper.models.model import Fusion, Model
from temper.models.prompt import embed_behind_prompts
from temper.signals.head import CHUNK_VALUES, Logprobs, SummedLogprobs

Reduction = Callable[[Tensor, Tensor], Tensor]
"""Takes float32 logits (C, V) and targets (C,), returns (C, ...)."""

MAX_CHUNK_VALUES = 2**23
"""Logits held at once: 32 MiB in float32, twice that in a backward pass."""


def logprob(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Return the log-probability of each target in nats, (C,)."""
    return torch.log_softmax(logits_CV, 1).gather(1, targets_C[:, None])[:, 0]


def hidden_states(model: Model, batch: Batch, is_causal: bool = True) -> Tensor:
    """Return the last hidden state of every token, after the last norm, (T, D); of soft prompts none.

    Args:
        is_causal: whether a token sees only what precedes it, or its whole document.
    """
    backbone, device = model.module.get_submodule(model.anatomy.backbone), batch.tokens_T.device
    if not model.prompt_length:
        layout = PackedLayout.of(batch.lengths, device, is_causal)
        summed_TD = None if model.sums is None else model.sums.embed(batch.tokens_T)
        read_T = batch.tokens_T if summed_TD is None else summed_TD
        places = batch.tokens_T, batch.positions_T, batch.lengths, is_causal
        with nullcontext() if model.prefix is None else model.prefix.in_place(*places):
            hidden_TD: Tensor = backbone(**packed_inputs(read_T, batch.positions_T, layout)).last_hidden_state[0]
        return hidden_TD
    run = embed_behind_prompts(model, batch.tokens_T, batch.lengths)
    layout = PackedLayout.of(run.lengths, device, is_causal)
    hidden_SD: Tensor = backbone(**packed_inputs(run.embedded_SD, run.positions_S, layout)).last_hidden_state[0]
    return hidden_SD.index_select(0, run.places_T)


def project(
    model: Model,
    hidden_ND: Tensor,
    targets_N: Tensor,
    reduce: Reduction = logprob,
    max_chunk_values: int | None = None,
) -> Tensor:
    """Project hidden states to the vocabulary and reduce, a chunk of tokens at a time.

    Args:
        hidden_ND: what predicts each target.
        targets_N: int64.
        reduce: what to keep of a chunk's logits.
        max_chunk_values: logits held at once; by default some ten million.

    Returns:
        (N, ...), differentiable; (0,) where nothing is supervised.
    """
    head = model.module.get_submodule(model.anatomy.head)
    if len(targets_N) == 0:
        return hidden_ND.sum(1) * 0.0
    if reduce is logprob and _is_plain(model, head):
        how = _how(model, hidden_ND, head, max_chunk_values)
        logprobs_N: Tensor = apply(Logprobs, hidden_ND, head.weight, targets_N, *how)
        return logprobs_N
    per_chunk = max(1, (max_chunk_values or MAX_CHUNK_VALUES) // head.weight.shape[0])
    parts = []
    for hidden_CD, targets_C in zip(hidden_ND.split(per_chunk), targets_N.split(per_chunk), strict=True):
        if torch.is_grad_enabled():
            part = checkpoint(_reduced, model, hidden_CD, targets_C, reduce, use_reentrant=False)
        else:
            part = _reduced(model, hidden_CD, targets_C, reduce)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _how(
    model: Model, hidden_ND: Tensor, head: nn.Module, max_chunk_values: int | None = None
) -> tuple[float, int, torch.dtype]:
    """Return the scale of the logits, the tokens of a chunk, and the type of the products."""
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    vocabulary = len(head.get_parameter("weight"))
    return model.anatomy.logit_scale, max(1, (max_chunk_values or CHUNK_VALUES) // vocabulary), dtype


def _is_plain(model: Model, head: nn.Module) -> bool:
    """Tell whether logits are hidden states times a weight and nothing else."""
    is_bare = type(head) is nn.Linear and head.bias is None and not head._forward_hooks and not head._forward_pre_hooks
    return is_bare and model.anatomy.logit_softcap is None


def _reduced(model: Model, hidden_CD: Tensor, targets_C: Tensor, reduce: Reduction) -> Tensor:
    return reduce(logits_of(model, hidden_CD), targets_C)


def logits_of(model: Model, hidden_CD: Tensor) -> Tensor:
    """Return the logits that hidden states give, (C, V), float32: for few tokens at a time."""
    logits_CV: Tensor = model.module.get_submodule(model.anatomy.head)(hidden_CD).float()
    if model.anatomy.logit_scale != 1.0:
        logits_CV = logits_CV * model.anatomy.logit_scale
    cap = model.anatomy.logit_softcap
    if cap is not None:
        logits_CV = torch.tanh(logits_CV / cap) * cap
    return logits_CV


def forward(model: Model, batch: Batch, reduce: Reduction = logprob) -> Tensor:
    """Run the model over a packed batch and reduce the logits of its supervised tokens, (N, ...).

    Of a combination of models these are its log-probabilities.
    """
    if model.fusion is not None:
        return _fused(model, model.fusion, batch, reduce)
    hidden_TD = hidden_states(model, batch)
    return project(model, hidden_TD.index_select(0, batch.supervised_N), batch.targets_N, reduce)


def _fused(model: Model, fusion: Fusion, batch: Batch, reduce: Reduction) -> Tensor:
    hidden = [hidden_states(member, batch).index_select(0, batch.supervised_N) for member in model.members]
    per_chunk = max(1, MAX_CHUNK_VALUES // model.module.get_submodule(model.anatomy.head).weight.shape[0])
    parts = [hidden[0].sum(1)[:0]]
    for start in range(0, batch.num_supervised, per_chunk):
        chunk = slice(start, start + per_chunk)
        own = [
            project(member, hidden_ND[chunk], batch.targets_N[chunk], _all_logprobs)
            for member, hidden_ND in zip(model.members, hidden, strict=True)
        ]
        parts.append(reduce(fusion.combine(own), batch.targets_N[chunk]))
    return torch.cat(parts[1:] or parts)


def _all_logprobs(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    return torch.log_softmax(logits_CV, 1)


def token_logprobs(model: Model, batch: Batch) -> Tensor:
    """Return the log-probability in nats of each supervised token, (N,), float32, differentiable."""
    return forward(model, batch)


def summed_logprobs(model: Model, batch: Batch, counts_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of count times log-probability in nats, and the log-probabilities.

    Cheaper than `token_logprobs` and a sum: knowing how much each token counts, it makes the head's gradients on its
    way forward.

    Args:
        counts_N: how much each supervised token counts, float32.

    Returns:
        a scalar, differentiable once, and (N,), detached; both float32.
    """
    head = model.module.get_submodule(model.anatomy.head)
    if model.fusion is not None or len(batch.targets_N) == 0 or not _is_plain(model, head):
        logprobs_N = token_logprobs(model, batch)
        return (logprobs_N * counts_N).sum(), logprobs_N.detach()
    hidden_ND = hidden_states(model, batch).index_select(0, batch.supervised_N)
    how = _how(model, hidden_ND, head)
    into_VD = None if model.sums is None else model.sums.begin_head(head.weight)
    factor = 1.0 if model.sums is None or into_VD is None else model.sums.factor
    inputs = hidden_ND, head.weight, batch.targets_N, counts_N, *how, into_VD, factor
    found: tuple[Tensor, Tensor] = apply(SummedLogprobs, *inputs)
    if model.sums is not None and into_VD is not None:
        model.sums.promise(found[0])
    return found


def document_sums(values_N: Tensor, batch: Batch) -> Tensor:
    """Add up per-token values (N,) by document, (B,)."""
    sums_B = torch.zeros(batch.num_documents, dtype=values_N.dtype, device=values_N.device)
    return sums_B.index_add(0, batch.document_N, values_N)
