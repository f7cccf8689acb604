"""Without losing what: the axis of retention methods.

A method may mix other data into every batch (`shares`), add a term to the objective for a step
(`Retention.penalty`) or for each micro-batch (`Retention.batch_penalty`), or act at step boundaries (`Live`'s hooks).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from temper.core.methods import OTHER_MODELS, Live, Method, on_many_processes
from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.data.source import Source
from temper.models.model import Model
from temper.signals.passes import Pass
from temper.signals.setup import Setup


@dataclass(frozen=True)
class Share:
    """Data that makes up a share of every batch."""

    sources: tuple[Source, ...]
    share: float
    """part of the examples (or of the tokens, where batches are cut by tokens), 0 to 1"""


class Retention(Live):
    """A retention method at work."""

    def before_batches(self, batches: Sequence[Batch], moment: Moment) -> None:
        """Look at all micro-batches of a step, before the first `batch_penalty`."""

    def batch_penalty(self, batch: Batch, moment: Moment) -> Tensor | None:
        """Return what a micro-batch adds to the step's objective, a scalar, or None; called as the loss is."""
        return None

    def penalty(self, moment: Moment) -> Tensor | None:
        """Return a scalar added to the step's objective, or None."""
        return None

    def further_passes(self, batches: Sequence[Batch], moment: Moment) -> Iterable[Pass]:
        """Return what it runs forward in a step besides the pass over each micro-batch that trains."""
        return ()


class Retain(Method, axis="retain", packages=("temper.retain",)):
    """Without losing what?"""

    works_on_pieces: ClassVar[bool] = False
    """It treats each number by itself, or none, so that tensors may be divided among processes (DTensor). Where it is
    false, each process holds them whole."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        data = ("other data, mixed into every batch",) if cls.declares("shares") else ()
        others = (OTHER_MODELS,) if cls.declares("models") else ()
        return (*super().needs(), *data, *others, on_many_processes(cls.works_on_pieces))

    def shares(self) -> Sequence[Share]:
        """Declare the data that is mixed in."""
        return ()

    def models(self) -> Sequence[str]:
        """Return the stages (or `base`) whose models it asks, besides the one that trains."""
        return ()

    def build(self, model: Model, setup: Setup) -> Retention:
        """Return the method at work on a model, before the first step."""
        return Retention()
