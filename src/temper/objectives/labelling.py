"""What objectives that learn labels share: a head of their own beside the model, and the cross-entropy on it.

Legend: L labelled documents or tokens, K labels, B documents, N labelled tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.nn import functional as F

from temper.core.schedule import Moment
from temper.data.encode import RowError
from temper.data.example import Row
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.signals.labels import LabelHead


class LabelTarget(Target):
    """A head at work on one model."""

    def __init__(self, model: Model, head: LabelHead) -> None:
        self.model, self.head = model, head

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "head.weight", self.head.weight_KD

    def save(self, folder: Path) -> None:
        self.head.save(folder)

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        logits_LK, labels_L = self.head.logits(self.model, batch)
        loss_L = F.cross_entropy(logits_LK, labels_L, reduction="none")
        assert batch.labelled_document_L is not None
        sums_B, counts_B = (
            torch.zeros(batch.num_documents, device=loss_L.device).index_add(0, batch.labelled_document_L, each_L)
            for each_L in (loss_L.detach(), torch.ones_like(loss_L))
        )
        is_right_L = logits_LK.detach().argmax(1) == labels_L
        return Loss(loss_L.sum(), sums_B / counts_B.clamp(min=1), {"accuracy": float(is_right_L.sum())})


class Labelling(Objective):
    """Give labels."""

    labels: tuple[str, ...] = Field(min_length=2, description="every label that the data may have")

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, written: object) -> object:
        if isinstance(written, list | tuple):
            written = [str(label) if type(label) is int else label for label in written]
            if len(set(written)) < len(written):
                raise ValueError("a label is named twice")
        return written

    def units(self, batch: Batch) -> float:
        """Count labels."""
        assert batch.labels_L is not None
        return float(len(batch.labels_L))

    def number(self, row: Row, label: str) -> int:
        """Return a label's number.

        Raises RowError for a label that is not among the settings' labels."""
        if label not in self.labels:
            raise RowError(f"the label {label!r} is none of labels ({', '.join(self.labels)}); add it there")
        return self.labels.index(label)
