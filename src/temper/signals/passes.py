"""What a method runs forward in a step besides the pass over each micro-batch that trains: for the count of a cost."""

from __future__ import annotations

from dataclasses import dataclass

from temper.data.pack import Batch
from temper.models.model import Model


@dataclass(frozen=True)
class Pass:
    """A model that reads a batch."""

    model: Model
    batch: Batch
    heads: int = 1
    """how often the logits of its supervised tokens are computed; 0 where it ends below the head"""
    trains: bool = False
    """whether a backward pass follows, where the optimizer takes gradients"""
    once: bool = False
    """taken once in a step, however often the optimizer asks for the step's loss"""
