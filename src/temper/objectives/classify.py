"""Classify texts by a head on the hidden states, instead of writing the label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.models.model import Model
from temper.objectives.labelling import Labelling, LabelTarget
from temper.signals.labels import LabelHead
from temper.signals.pooling import Pooling
from temper.signals.setup import Setup


class Classification(Labelling, name="classify"):
    """Learn one label for each text: L = -log softmax(W pool(h))_y, the mean over texts.

    h are the last hidden states of the text's tokens, W (labels x width) is a new linear layer without bias, which
    trains beside what the tuner moves and is saved as `head/`. With `causal: false` every token sees its whole text.

    Paper: Label Supervised LLaMA Finetuning, arXiv:2310.01208 (LS-LLaMA; LS-unLLaMA with `causal: false`).
    Symbols: pool is `pooling`. Deviation: with open attention texts of one length only are attended to together,
    which changes no number.
    """

    example: ClassVar[dict[str, Any]] = {"labels": ["yes", "no"]}
    formats: ClassVar[frozenset[Format]] = frozenset({"class"})

    pooling: Pooling = Field("last", description="pool: the text's last token, or the mean or the maximum of all")
    causal: bool = Field(True, description="whether a token sees only what precedes it; false: its whole text")

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        number = self.number(row, row.content["class"])
        sequence = encoder.read(row.content["text"])
        labels_T = np.full(len(sequence.tokens_T), -1, dtype=np.int32)
        labels_T[-1] = number
        return [(replace(sequence, labels_T=labels_T),)]

    def build(self, model: Model, setup: Setup) -> LabelTarget:
        return LabelTarget(model, LabelHead.new(model, self.labels, self.pooling, self.causal, setup.seed))
