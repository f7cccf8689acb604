"""KTO: learn from single answers, each marked good or bad.

Legend: P examples, B documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Many
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from torch import Tensor

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Example, Format, Row, Sequence
from temper.data.pack import Batch, pack
from temper.models.model import Model
from temper.objectives.base import Loss, Objective, Target
from temper.objectives.preference import answer_logprobs
from temper.signals.forward import token_logprobs
from temper.signals.passes import Pass
from temper.signals.reference import START, Reference
from temper.signals.setup import Setup

Part = tuple[NDArray[np.int32], NDArray[np.int32]]
"""tokens of a prompt and of its answer"""


class KTOTarget(Target):
    """The objective at work, with the step's estimate of the reference point."""

    def __init__(self, model: Model, method: KahnemanTverskyOptimization, reference: Reference) -> None:
        self.model, self.method, self.reference = model, method, reference
        self.reference_point = 0.0

    def before_batches(self, batches: Many[Batch], moment: Moment) -> None:
        """Estimate z_0 over the whole step, from each prompt with another example's answer."""
        self.reference_point = 0.0
        if sum(batch.num_examples for batch in batches) == 1:
            return
        batches = mismatched(batches, self.model.num_positions)
        total = 0.0
        with torch.no_grad():
            for batch in batches:
                reference_B = answer_logprobs(self.reference.token_logprobs(batch), batch)
                total += float((answer_logprobs(token_logprobs(self.model, batch), batch) - reference_B).sum())
        self.reference_point = max(0.0, total / sum(batch.num_examples for batch in batches))

    def further_passes(self, batches: Many[Batch], moment: Moment) -> list[Pass]:
        reference = self.reference.model
        passes = [Pass(reference, batch) for batch in batches]
        if sum(batch.num_examples for batch in batches) > 1:
            # With the answers of others a step has as many tokens, but for those that are cut.
            passes += [Pass(model, batch, once=True) for model in (self.model, reference) for batch in batches]
        return passes

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        reference_P = answer_logprobs(self.reference.token_logprobs(batch), batch)
        ratio_P = answer_logprobs(token_logprobs(self.model, batch), batch) - reference_P
        is_good_P = torch.tensor([role == "desirable" for role in batch.roles], device=ratio_P.device)
        sign_P, weight_P = self._signs(is_good_P)
        loss_P = weight_P * (1 - torch.sigmoid(self.method.beta * sign_P * (ratio_P - self.reference_point)))
        metrics = {
            "reference_point": self.reference_point * batch.num_examples,
            "reward_accuracy": float(((ratio_P > self.reference_point) == is_good_P).sum()),
        }
        return Loss(loss_P.sum(), loss_P.detach(), metrics)

    def _signs(self, is_good_P: Tensor) -> tuple[Tensor, Tensor]:
        sign_P = torch.where(is_good_P, 1.0, -1.0)
        return sign_P, torch.where(is_good_P, self.method.desirable_weight, self.method.undesirable_weight)


class KahnemanTverskyOptimization(Objective, name="kto"):
    """Make good answers more and bad answers less likely than a reference point.

    L = mean of lambda_y - v(x, y), where r = log(pi(y|x) / pi_ref(y|x)) and
    v = lambda_D sigma(beta (r - z_0)) for a desirable answer, lambda_U sigma(beta (z_0 - r)) for an undesirable one.
    z_0 estimates KL(pi || pi_ref): max(0, mean of log(pi(y'|x) / pi_ref(y'|x))) over the step, y' being the answer
    of another example of it. No gradient goes through z_0.

    Paper: KTO: Model Alignment as Prospect Theoretic Optimization, arXiv:2402.01306.
    Symbols: beta is `beta`, lambda_D is `desirable_weight`, lambda_U is `undesirable_weight`, pi_ref is `reference`.
    Deviation: z_0 is estimated over the whole optimizer step, not over each micro-batch, and which other answer a
    prompt gets does not depend on the order of the step; a step of one example has z_0 = 0. Where a prompt and
    another example's answer are longer than the model can read, the answer is cut.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"label"})

    beta: PositiveFloat = Field(0.1, description="beta: how closely the reference is kept to; reward per nat of ratio")
    desirable_weight: PositiveFloat = Field(1.0, description="lambda_D: weight of good answers")
    undesirable_weight: PositiveFloat = Field(1.0, description="lambda_U: weight of bad answers")
    reference: str = Field(
        START,
        description="the reference model: start (the model as it was before this stage), base, or an earlier stage",
    )

    def models(self) -> Many[str]:
        return (self.reference,)

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(encoder.supervised(row, "desirable" if row.content["label"] else "undesirable"),)]

    def units(self, batch: Batch) -> float:
        """Count examples."""
        return float(batch.num_examples)

    def build(self, model: Model, setup: Setup) -> KTOTarget:
        return KTOTarget(model, self, setup.reference(model, self.reference))


def mismatched(batches: Many[Batch], max_length: int) -> list[Batch]:
    """Return the batches with every prompt followed by the answer of another document of the step.

    It is the document before it in the order of their hashes, which is the same however a step is divided.
    """
    parts = [_parts(batch) for batch in batches]
    flat = [part for of_batch in parts for part in of_batch]
    order = sorted(range(len(flat)), key=lambda place: _hash(flat[place]))
    other = dict(zip(order, [order[-1], *order[:-1]], strict=True))
    made = []
    place = 0
    for of_batch in parts:
        examples = []
        for prompt_T, _ in of_batch:
            tokens_T = np.concatenate([prompt_T, flat[other[place]][1]])[:max_length]
            place += 1
            weights_T = (np.arange(len(tokens_T)) >= len(prompt_T)).astype(np.float32)
            weights_T[0] = 0
            examples.append(Example((Sequence(tokens_T, weights_T),)))
        made.append(pack(examples).to(batches[0].tokens_T.device))
    return made


def _hash(part: Part) -> bytes:
    prompt_T, answer_T = part
    return hashlib.blake2b(prompt_T.tobytes() + b"|" + answer_T.tobytes(), digest_size=16).digest()


def _parts(batch: Batch) -> list[Part]:
    """Divide each document into what precedes its first supervised token, and the rest."""
    tokens_T = batch.tokens_T.cpu().numpy().astype(np.int32)
    document_N = batch.document_N.cpu().numpy()
    first_B = np.searchsorted(document_N, np.arange(batch.num_documents))
    predicted_B = batch.supervised_N.cpu().numpy()[first_B] + 1
    end_B = np.cumsum(batch.lengths)
    return [
        (tokens_T[end - length : predicted], tokens_T[predicted:end])
        for length, predicted, end in zip(batch.lengths, predicted_B, end_B, strict=True)
    ]
