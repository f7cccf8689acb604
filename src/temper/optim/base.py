"""How the numbers move: the axis of optimizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from temper.core.methods import Method


class Optim(Method, axis="optimizer", packages=("temper.optim",)):
    """How do the numbers move?"""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        """Return an optimizer over named parameters whose groups carry `lr`.

        The engine multiplies each group's peak (`initial_lr`) with the schedule's factor before every step.
        """
        raise NotImplementedError
