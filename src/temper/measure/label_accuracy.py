"""Label accuracy: the share of texts, or of words, to which a trained head gives the right label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from temper.core.errors import SettingError
from temper.data.encode import Encoder, RowError
from temper.data.example import Example, Format, Row, Sequence
from temper.data.pack import pack, split_by_cost
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject
from temper.measure.examples import SourceSuite
from temper.models.generate import evaluation_mode
from temper.models.model import Model
from temper.signals.labels import LabelHead

BATCH_TOKENS = 8192


class LabelAccuracy(SourceSuite, name="label_accuracy"):
    """The share of right labels, given by the head that `classify` or `tag` trained.

    A text's score is 1 or 0; that of a text with tagged words is the share of its words that are tagged right. A
    model without a head gives no label, and scores 0.

    Source: Label Supervised LLaMA Finetuning, arXiv:2310.01208 (accuracy of classes). Deviation: words are scored
    one by one, where the paper scores the entities that they form.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"class", "tags"})

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        rows = self.rows(cache, seed)
        device = next(subject.model.module.parameters()).device
        head = None if subject.model.head is None else LabelHead.load(subject.model.head, device)
        kept, sequences = self._encode(Encoder.of(subject.model, self.max_length), rows)
        wanted = [_wanted(row) for row in kept]
        given = [[""] * len(labels) for labels in wanted]
        if head is not None:
            if (head.pooling is None) != (kept[0].format == "tags"):
                kind = "words" if head.pooling is None else "texts"
                reason = f"is no data for a head on {kind}"
                raise SettingError("label_accuracy.source", self.source.label, reason, "name other data")
            given = predict(subject.model, head, sequences)
        scores = tuple(float(np.mean(np.equal(ours, right))) for ours, right in zip(given, wanted, strict=True))
        samples = [
            Sample(_text(row), " ".join(labels), " ".join(ours), score)
            for row, labels, ours, score in zip(kept, wanted, given, scores, strict=True)
        ]
        return Score(
            metric="accuracy",
            higher_is_better=True,
            scores=scores,
            correct=tuple(score == 1 for score in scores),
            samples=tuple(samples[:NUM_SAMPLES]),
            num_left_out=len(rows) - len(kept) + self.num_unread(cache),
        )

    def _encode(self, encoder: Encoder, rows: list[Row]) -> tuple[list[Row], list[Sequence]]:
        kept, sequences = [], []
        for row in rows:
            try:
                if row.format == "class":
                    sequence = encoder.read(row.content["text"])
                    places = [len(sequence.tokens_T) - 1]
                elif row.format == "tags":
                    sequence, places = encoder.read_words(row.content["words"])
                else:
                    raise RowError(f"a row of format {row.format} has no label")
            except RowError as error:
                self.refuse(row, str(error))
                continue
            labels_T = np.full(len(sequence.tokens_T), -1, dtype=np.int32)
            labels_T[places] = 0
            kept.append(row)
            sequences.append(replace(sequence, labels_T=labels_T))
        if not kept:
            reason = "holds no row that can be scored"
            raise SettingError("label_accuracy.source", self.source.label, reason, "name other data")
        return kept, sequences


def predict(model: Model, head: LabelHead, sequences: list[Sequence]) -> list[list[str]]:
    """Return the labels of each sequence's places (those whose label is not -1), in order."""
    found: list[list[str]] = [[] for _ in sequences]
    numbered = [Example((sequence,), {"number": number}) for number, sequence in enumerate(sequences)]
    with torch.inference_mode(), evaluation_mode(model.module):
        for group in split_by_cost(numbered, BATCH_TOKENS, model.prompt_length):
            batch = pack(group).to(head.weight_KD.device)
            logits_LK, _ = head.logits(model, batch)
            labels = iter(logits_LK.argmax(1).tolist())
            for example in group:
                labels_T = example.sequences[0].labels_T
                assert labels_T is not None
                found[example.columns["number"]] = [
                    head.labels[next(labels)] for _ in range(int((labels_T >= 0).sum()))
                ]
    return found


def _wanted(row: Row) -> list[str]:
    return [str(row.content["class"])] if row.format == "class" else list(row.content["tags"])


def _text(row: Row) -> str:
    return str(row.content["text"]) if row.format == "class" else " ".join(row.content["words"])
