"""Masked thought: learn to go on although parts of one's own reasoning cannot be read.

Legend: T packed tokens, N supervised tokens.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from temper.core.errors import SettingError, nearest
from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective
from temper.objectives.sft import TokenLoss
from temper.signals.setup import Setup


class MaskedLoss(TokenLoss):
    """The likelihood of the response, whose tokens are partly hidden where they are read."""

    reads_as_written: ClassVar[bool] = False

    def __init__(self, model: Model, method: MaskedThought, token: int, seed: int) -> None:
        super().__init__(model)
        self.method, self.token, self.seed = method, token, seed

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        if not self.model.module.training:
            return super().loss(batch, moment)
        hidden = self.hidden(batch, moment).to(batch.tokens_T.device)
        return super().loss(
            dataclasses.replace(batch, tokens_T=batch.tokens_T.index_fill(0, hidden, self.token)), moment
        )

    def hidden(self, batch: Batch, moment: Moment) -> Tensor:
        """Return the flat places of the tokens that are hidden at a moment, int64.

        What is drawn for a document follows from seed, step and its own tokens: however a step is divided, and
        after a resumption, it is the same.
        """
        rate = self.method.probability
        if moment.progress < self.method.warmup:
            rate *= moment.progress / self.method.warmup
        tokens_T = batch.tokens_T.cpu().numpy()
        place_N, document_N = batch.supervised_N.cpu().numpy() + 1, batch.document_N.cpu().numpy()
        ends = np.cumsum(batch.lengths)
        found = []
        for document, (end, length) in enumerate(zip(ends, batch.lengths, strict=True)):
            own = place_N[document_N == document]
            content = zlib.crc32(tokens_T[end - length : end].tobytes())
            draws = np.random.default_rng([self.seed, moment.step, content]).random(len(own))
            found.append(own[draws < rate])
        return torch.from_numpy(np.concatenate(found))


class MaskedThought(Objective, name="masked_thought"):
    """Supervised fine-tuning in which each response token is, as an input, hidden with probability p.

    L = -sum_t w_t log p(x_t | m(x)_<t) / sum_t w_t, where m replaces tokens of the response (never of the prompt) by
    the mask token with probability p, drawn anew in every step. What is to be predicted stays whole.

    Paper: Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning Learning of
    Language Models, arXiv:2403.02178.
    Symbols: p is `probability`; w_t are the loss weights of the data. Deviation: no token is added to the vocabulary:
    the mask is one that the tokenizer has. Nothing is hidden while validating.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion", "text"})

    probability: float = Field(0.4, ge=0, le=1, description="p: share of the response's tokens that is hidden")
    warmup: float = Field(0.0, ge=0, le=1, description="share of the stage over which p rises from 0, in a line")
    token: str | None = Field(
        None,
        min_length=1,
        description="the token that stands for a hidden one; by default the tokenizer's mask or padding token",
    )

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(encoder.supervised(row),)]

    def build(self, model: Model, setup: Setup) -> MaskedLoss:
        return MaskedLoss(model, self, self._token_id(model), setup.seed)

    def _token_id(self, model: Model) -> int:
        tokenizer, key = model.tokenizer, "objective.masked_thought.token"
        name = self.token or tokenizer.mask_token or tokenizer.pad_token
        if self.token is None and name in (None, tokenizer.eos_token):
            fix = "name a token that is rare in the data, such as a reserved one"
            raise SettingError(key, None, "finds neither a mask nor a padding token of its own", fix)
        vocabulary = tokenizer.get_vocab()
        if name not in vocabulary:
            raise SettingError(key, name, "is no token of this model", nearest(name, vocabulary))
        number = int(vocabulary[name])
        if number >= model.module.get_input_embeddings().num_embeddings:
            raise SettingError(key, name, "has no embedding in this model", "name another token")
        return number
