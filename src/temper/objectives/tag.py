"""Tag words by a head on the hidden states."""

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
from temper.signals.setup import Setup


class Tagging(Labelling, name="tag"):
    """Learn one label for each word: L = -log softmax(W h_t)_y, the mean over words, t being a word's first token.

    h are the last hidden states, W (labels x width) is a new linear layer without bias, which trains beside what the
    tuner moves and is saved as `head/`. By default every token sees its whole text, for a tag may hang on what follows.

    Paper: Label Supervised LLaMA Finetuning, arXiv:2310.01208 (LS-unLLaMA; LS-LLaMA with `causal: true`).
    Deviation: no dropout before W, and no bias. With open attention texts of one length only are attended to
    together, which changes no number.
    """

    example: ClassVar[dict[str, Any]] = {"labels": ["yes", "no"]}
    formats: ClassVar[frozenset[Format]] = frozenset({"tags"})

    causal: bool = Field(False, description="whether a token sees only what precedes it; false: its whole text")

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        numbers = [self.number(row, tag) for tag in row.content["tags"]]
        sequence, places = encoder.read_words(row.content["words"])
        labels_T = np.full(len(sequence.tokens_T), -1, dtype=np.int32)
        labels_T[places] = numbers[: len(places)]
        return [(replace(sequence, labels_T=labels_T),)]

    def build(self, model: Model, setup: Setup) -> LabelTarget:
        return LabelTarget(model, LabelHead.new(model, self.labels, None, self.causal, setup.seed))
