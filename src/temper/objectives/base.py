"""Towards what: the axis of objectives.

An objective says how a row is encoded, in which unit a batch is counted, and what is summed. The engine
divides the sum by the units of the *whole* batch (all micro-batches, all processes), so that
accumulating gradients equals one large batch exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from temper.core.methods import OTHER_MODELS, Live, Method, on_many_processes
from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.signals.passes import Pass
from temper.signals.setup import Setup


@dataclass(frozen=True)
class Loss:
    """What one micro-batch adds."""

    total: Tensor
    """scalar sum over the micro-batch's units, differentiable"""
    document_B: Tensor | None = None
    """detached loss of each document, to name the examples behind a spike"""
    metrics: dict[str, float] = field(default_factory=dict)
    """further sums over the units, for `metrics.jsonl`"""


class Target(Live, ABC):
    """An objective at work on one model."""

    is_sum: ClassVar[bool] = False
    """The loss's `total` is the very tensor that `summed_logprobs` gave, so that the gradient of the head may be added
    up while it is made (`models/sums.py`)."""
    reads_as_written: ClassVar[bool] = True
    """The model reads each document as the data has it, in every pass over the data."""

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield trainable numbers of the objective's own (a head), by name, as a tuner does."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Write what it has learnt itself into a stage's folder, as `head/`."""

    def before_batches(self, batches: Many[Batch], moment: Moment) -> None:
        """Look at all micro-batches of a step, before the first `loss`: for what is taken over the whole step."""

    def further_passes(self, batches: Many[Batch], moment: Moment) -> Iterable[Pass]:
        """Return what it runs forward in a step besides the pass over each micro-batch that trains."""
        return ()

    @abstractmethod
    def loss(self, batch: Batch, moment: Moment) -> Loss:
        """Run the model forward on a micro-batch and return its loss."""


class Objective(Method, axis="objective", packages=("temper.objectives",)):
    """Towards what?"""

    formats: ClassVar[frozenset[Format]] = frozenset()
    """the row formats that it can be trained on"""
    works_on_pieces: ClassVar[bool] = False
    """It runs the model that trains and no other, so that tensors may be divided among processes (DTensor)."""

    passes_before: ClassVar[float] = 0.0
    """passes over the data after which it does what it is for; a stage that is over by then is refused"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        others = (OTHER_MODELS,) if cls.declares("models") else ()
        passes = (f"more than {cls.passes_before:g} passes over the data",) if cls.passes_before else ()
        return (*super().needs(), *others, *passes, on_many_processes(cls.works_on_pieces))

    def models(self) -> Many[str]:
        """Return the stages (or `base`) whose models it asks, besides the one that it trains."""
        return ()

    @abstractmethod
    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        """Turn a row into examples, each a tuple of sequences.

        Raises:
            RowError: the row cannot be trained on.
        """

    def units(self, batch: Batch) -> float:
        """Count what the loss is a mean over (for token losses: the sum of weights)."""
        return float(batch.weights_N.sum())

    @abstractmethod
    def build(self, model: Model, setup: Setup) -> Target:
        """Return the objective at work on a model, before the first step."""
