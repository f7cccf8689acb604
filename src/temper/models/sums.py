"""Add a pass's gradient to that of the passes before where it lies, for the two matrices over the vocabulary.

Autograd makes a gradient of a weight's own size in every pass, and adds it to the sum of those before. With many words
nothing else in a step is as large. Two things make that needless:

- The embedding's gradient has as many rows as tokens were read. They are kept as they are, until the step is over or
  they would be more than the words.
- Of the head's gradient the function that makes it (`signals/head.py`) can add each piece to the sum, where it knows by
  what the sum of log-probabilities will be multiplied: where that sum is all of the loss.

Who trains says when: while a pass belongs to no such sums, autograd does what it always does.

Legend: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes

from temper.models.autograd import apply
from temper.models.model import Model
from temper.models.pages import give_back, is_large, zeros


class Sums:
    """The gradients of a step's passes over one model, where its own tensors are not the place.

    Args:
        model: whose passes these are.
        with_head: whether a sum of log-probabilities is all of the loss.
    """

    def __init__(self, model: Model, with_head: bool) -> None:
        self.model, self.with_head = model, with_head
        self.factor = 1.0
        """by what the loss of the pass that runs is multiplied"""
        self._embedding: Any = model.module.get_submodule(model.anatomy.embedding)
        self._multiple = multiple(self._embedding)
        self._rows: list[tuple[Tensor, Tensor]] = []
        """tokens (T,) and the gradients of what was read for them (T, D)"""
        self._totals: list[Tensor] = []
        """sums of log-probabilities whose gradient is already part of the head's"""

    @contextmanager
    def of_pass(self, factor: float) -> Iterator[None]:
        """Be the context in which a pass runs forward.

        Args:
            factor: by what its loss is multiplied before it is run backward, once.
        """
        self.factor, self.model.sums = factor, self
        try:
            yield
        finally:
            self.model.sums = None

    def check(self, total: Tensor) -> None:
        """Raise RuntimeError where the sum that was promised to be the loss of the pass is not: a gradient is wrong."""
        promised, self._totals = self._totals, []
        if any(one is not total for one in promised):
            raise RuntimeError(
                "the objective's loss is not the tensor that `summed_logprobs` gave it, as its `is_sum` says it is; "
                "where that sum is only a part of the loss, is_sum must be False"
            )

    def begin_head(self, weight_VD: Tensor) -> Tensor | None:
        """Return the sum that a pass's gradient of the head is to be added to; None where autograd does that."""
        return _sum_of(weight_VD) if self.with_head and _is_summed(weight_VD) else None

    def promise(self, total: Tensor) -> None:
        """Say that a sum of log-probabilities is the loss of the pass."""
        self._totals.append(total)

    def embed(self, tokens: Tensor) -> Tensor | None:
        """Return what the model's embedding gives for tokens, (..., D), whose gradient is kept here; None where
        autograd is to take it."""
        weight_VD = self._embedding.weight
        if self._multiple is None or not _is_summed(weight_VD):
            return None
        with torch.no_grad():
            embedded = self._embedding(tokens)
        read: Tensor = apply(_Read, weight_VD, embedded, tokens, self)
        return read

    def keep(self, tokens: Tensor, grad: Tensor) -> None:
        """Keep the gradient of what was read for tokens."""
        assert self._multiple is not None
        tokens_T, grad_TD = tokens.reshape(-1), grad.reshape(-1, grad.shape[-1]) * self._multiple
        padding = self._embedding.padding_idx
        if padding is not None:  # whose row never trains
            grad_TD = grad_TD * (tokens_T != padding)[:, None]
        self._rows.append((tokens_T, grad_TD))
        if sum(len(tokens_T) for tokens_T, _ in self._rows) > len(self._embedding.weight):
            self.finish()

    @property
    def gives_back(self) -> bool:
        """Whether `finish` makes so large a gradient that what the passes left in the heap is given back before."""
        weight_VD = self._embedding.weight
        return bool(self._rows) and weight_VD.grad is None and is_large(weight_VD, weight_VD.nbytes)

    @torch.no_grad()
    def finish(self) -> None:
        """Bring what was kept into the gradients of the parameters."""
        if not self._rows:
            return
        if self.gives_back:
            give_back()
        tokens_T, order_T = torch.cat([tokens_T for tokens_T, _ in self._rows]).sort(stable=True)
        grad_TD = torch.cat([grad_TD for _, grad_TD in self._rows])[order_T]
        self._rows.clear()
        # Each word's rows are added up in their order, and each word is then written once: the same bits every time.
        number_T = torch.cat([tokens_T.new_zeros(1), (tokens_T[1:] != tokens_T[:-1]).cumsum(0)])
        sums_TD = torch.ops.aten.embedding_dense_backward(grad_TD, number_T, len(tokens_T), -1, False)
        words_T = tokens_T[0].repeat(len(tokens_T)).scatter(0, number_T, tokens_T)  # what is left over is sums of 0
        _sum_of(self._embedding.weight).index_add_(0, words_T, sums_TD)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, embedded: Tensor, tokens: Tensor, sums: Sums) -> Tensor:
        ctx.tokens, ctx.sums = tokens, sums
        return embedded.view_as(embedded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        ctx.sums.keep(ctx.tokens, grads[0])
        return None, None, None, None


def _is_summed(weight: Tensor) -> bool:
    return torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf


def _sum_of(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = zeros(weight, *weight.shape)
    return weight.grad


def multiple(embedding: nn.Module) -> float | None:
    """Return how many times a word's row an embedding gives for the word; None where that is not what it does."""
    is_plain = isinstance(embedding, nn.Embedding) and not embedding._forward_hooks and not embedding._forward_pre_hooks
    if not is_plain or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return None
    # Tried on numbers even while a model is built from tensors without content.
    with _disable_current_modes(), torch.no_grad():
        row_D = torch.randn(embedding.embedding_dim, generator=torch.Generator().manual_seed(0), device="cpu")
        rows_VD = row_D.expand(embedding.num_embeddings, -1)
        # In a plan a buffer has no number, and any will do.
        buffers = {
            name: torch.ones(buffer.shape, device="cpu") if isinstance(buffer, FakeTensor) else buffer.cpu()
            for name, buffer in embedding.named_buffers()
        }
        word = torch.zeros((), dtype=torch.int64, device="cpu")
        found_D = functional_call(embedding, {"weight": rows_VD, **buffers}, (word,))
        factor = 1.0 if torch.equal(found_D, row_D) else float((found_D @ row_D) / (row_D @ row_D))
        return factor if torch.allclose(found_D, factor * row_D, rtol=1e-5, atol=1e-6) else None
