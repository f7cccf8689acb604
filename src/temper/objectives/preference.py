"""What objectives on preferred and rejected answers share: the log-probabilities of whole answers.

A method gives the margin of a pair (by how much its implied reward prefers the chosen answer) and the loss of a
margin. A pair is one example, so that no micro-batch divides it, and the loss is a mean over pairs.

Legend: P pairs, N supervised tokens, B documents.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.signals.forward import document_sums, token_logprobs
from temper.signals.passes import Pass
from temper.signals.reference import START, Reference
from temper.signals.setup import Setup


@dataclass(frozen=True)
class Answers:
    """One side of the pairs."""

    logprob_P: Tensor
    """log p(y|x) in nats: the weighted sum over the answer's tokens"""
    length_P: Tensor
    """tokens of the answer (the sum of their weights)"""
    reference_P: Tensor | None = None
    """log-probability under the reference model, where the method has one"""

    @property
    def mean_P(self) -> Tensor:
        """log p(y|x) / |y|, nats per token."""
        return self.logprob_P / self.length_P

    @property
    def ratio_P(self) -> Tensor:
        """log p(y|x) - log p_ref(y|x)."""
        assert self.reference_P is not None
        return self.logprob_P - self.reference_P


class PreferenceTarget(Target):
    """A preference objective at work on one model, beside its reference."""

    def __init__(self, model: Model, method: Preference, reference: Reference | None) -> None:
        self.model, self.method, self.reference = model, method, reference

    def further_passes(self, batches: Many[Batch], moment: Moment) -> list[Pass]:
        return [] if self.reference is None else [Pass(self.reference.model, batch) for batch in batches]

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        reference_B = None
        if self.reference is not None:
            reference_B = answer_logprobs(self.reference.token_logprobs(batch), batch)
        logprob_B = answer_logprobs(token_logprobs(self.model, batch), batch)
        length_B = document_sums(batch.weights_N, batch)
        chosen, rejected = (_side(role, batch, logprob_B, length_B, reference_B) for role in ("chosen", "rejected"))
        margin_P = self.method.margin(chosen, rejected)
        loss_P = self.method.losses(margin_P, chosen)
        metrics = {
            "reward_accuracy": float((margin_P > 0).sum()),
            "reward_margin": float(margin_P.detach().sum()),
        }
        return Loss(loss_P.sum(), loss_P.detach()[torch.tensor(batch.examples, device=loss_P.device)], metrics)


class Preference(Objective):
    """Prefer one answer to another."""

    formats: ClassVar[frozenset[Format]] = frozenset({"preference"})

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [encoder.pair(row)]

    def units(self, batch: Batch) -> float:
        """Count pairs."""
        return float(batch.num_examples)

    @abstractmethod
    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the implied reward of each chosen answer less that of the rejected one, (P,)."""

    @abstractmethod
    def losses(self, margin_P: Tensor, chosen: Answers) -> Tensor:
        """Return the loss of each pair, (P,)."""

    def build(self, model: Model, setup: Setup) -> PreferenceTarget:
        return PreferenceTarget(model, self, None)


class ReferencedPreference(Preference):
    """Prefer one answer to another, measured against a reference model."""

    reference: str = Field(
        START,
        description="the reference model: start (the model as it was before this stage), base, or an earlier stage",
    )

    def models(self) -> Many[str]:
        return (self.reference,)

    def build(self, model: Model, setup: Setup) -> PreferenceTarget:
        return PreferenceTarget(model, self, setup.reference(model, self.reference))


def answer_logprobs(logprob_N: Tensor, batch: Batch) -> Tensor:
    """Add up the weighted log-probabilities of each document's answer, (B,)."""
    return document_sums(logprob_N * batch.weights_N, batch)


def _side(role: str, batch: Batch, logprob_B: Tensor, length_B: Tensor, reference_B: Tensor | None) -> Answers:
    places = [index for index, other in enumerate(batch.roles) if other == role]
    place_P = torch.tensor(places, device=logprob_B.device)
    return Answers(
        logprob_B.index_select(0, place_P),
        length_B.index_select(0, place_P),
        None if reference_B is None else reference_B.index_select(0, place_P),
    )
