"""Plain language modelling: every token of running text, for continued pre-training."""

from __future__ import annotations

from typing import ClassVar

from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.objectives.sft import TokenLoss
from temper.signals.setup import Setup


class LanguageModelling(Objective, name="lm"):
    """Maximise the likelihood of running text; a text longer than `max_length` is read in pieces.

    L = -sum_t log p(x_t | x_<t) / (number of tokens).

    Paper: Don't Stop Pretraining: Adapt Language Models to Domains and Tasks, arXiv:2004.10964
    (continued pre-training; the objective itself is the causal language model's).
    """

    works_on_pieces: ClassVar[bool] = True
    formats: ClassVar[frozenset[Format]] = frozenset({"text", "messages", "completion"})

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(sequence,) for sequence in encoder.plain(row)]

    def build(self, model: Model, setup: Setup) -> TokenLoss:
        return TokenLoss(model)
