"""Experts that train: low-rank ones behind a router, beside frozen parts.

While somebody looks, every router writes down how it divides the tokens that it is shown, so that a method can balance
its experts by example.

Legend: T tokens, I input features, O output features, N experts, R rank, M examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import TrainingError
from temper.data.pack import Batch
from temper.delta.experts import Experts, ExpertsDelta, Placed
from temper.models.anatomy import Part
from temper.models.model import Model
from temper.tune.beside import BesideTuning, Update


def starting_experts(
    part: Part, shape: tuple[int, int], scaling: float, generator: torch.Generator, device: torch.device
) -> Experts:
    """Return experts that add nothing: router and A uniform as a linear layer starts, B at 0.

    Args:
        shape: N and R.
        generator: of a CPU, so that every device starts alike.
    """
    num, rank = shape
    bound = 1 / math.sqrt(part.in_features)  # Kaiming's uniform bound with a = sqrt(5)
    router_NI = torch.empty(num, part.in_features).uniform_(-bound, bound, generator=generator)
    a_NRI = torch.empty(num, rank, part.in_features).uniform_(-bound, bound, generator=generator)
    b_NOR = torch.zeros(num, part.out_features, rank)
    return Experts(router_NI.to(device), a_NRI.to(device), b_NOR.to(device), scaling)


class ExpertsUpdate(Update):
    """The experts beside one part, and how its router has divided the tokens that it was shown."""

    def __init__(self, part: Part, experts: Experts, dropout: float) -> None:
        self.part, self.experts, self.dropout = part, experts, dropout
        self.seen: list[Tensor] | None = None
        """gates (T, N) of each forward pass while somebody looks; None while nobody does"""
        self.has_gradient = True
        """of the passes that are looked at: one without a gradient among those with one is a reference's"""

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.experts.named_parameters()

    def output(self, x_TI: Tensor, frozen: Callable[[], Tensor], is_training: bool) -> Tensor:
        gate_TN = self.experts.route(x_TI)
        if self.seen is not None and is_training and torch.is_grad_enabled() == self.has_gradient:
            self.seen.append(gate_TN.flatten(0, -2))
        return self.experts.mix(F.dropout(x_TI, self.dropout, is_training), gate_TN)

    def mass(self, batch: Batch, switch: str) -> Tensor:
        """Return what each expert counted for in all tokens of each example, (M, N), and look no further.

        Args:
            switch: the setting that needs to know it, for the error.

        Raises:
            TrainingError: the model read other tokens than the batch has.
        """
        seen, self.seen = self.seen or [], None
        read = {len(gate_TN) for gate_TN in seen} or {0}
        if read != {batch.num_tokens}:
            raise TrainingError(
                f"{self.part.path}: the model read {max(read)} tokens of a batch of {batch.num_tokens}, so that nobody "
                f"knows of which example a token is, which {switch} needs; set {switch} to 0, or take an objective "
                "that reads the batch as it is"
            )
        example_T = torch.from_numpy(np.repeat(batch.examples, batch.lengths)).to(seen[0].device)
        mass_MN = seen[0].new_zeros(batch.num_examples, seen[0].shape[1])
        for gate_TN in seen:
            mass_MN = mass_MN.index_add(0, example_T, gate_TN)
        return mass_MN


class ExpertsTuning(BesideTuning):
    """Experts at work on one model."""

    def __init__(self, model: Model, updates: Sequence[ExpertsUpdate], method: dict[str, Any]) -> None:
        super().__init__(model, updates, method)
        self.experts = list(updates)

    def look(self) -> None:
        """Begin to write down how the routers divide tokens, in passes with a gradient or without, as now."""
        for each in self.experts:
            each.seen, each.has_gradient = [], torch.is_grad_enabled()

    def masses(self, batch: Batch, switch: str) -> list[Tensor]:
        """Return for each part what its experts counted for, (M, N), since `look`."""
        return [each.mass(batch, switch) for each in self.experts]

    def delta(self) -> ExpertsDelta:
        placed = [Placed(each.part.path, each.part.rows, each.experts.copy()) for each in self.experts]
        return ExpertsDelta(placed, self.provenance)

    def merge(self) -> None:
        """Leave the experts attached to the model, frozen: they are no change of its weights."""
        delta = self.delta()
        self.detach()
        delta.apply(self.model)
