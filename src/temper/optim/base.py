"""How the numbers move: the axis of optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from temper.core.methods import Method


class Optim(Method, axis="optimizer", packages=("temper.optim",)):
    """How do the numbers move?"""

    works_on_pieces: ClassVar[bool] = False
    """Each number's step follows from its own gradient alone, so that tensors may be divided among processes. Where it
    is false, each process holds them whole."""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        """Return an optimizer over named parameters whose groups carry `lr`.

        The engine multiplies each group's peak (`initial_lr`) with the schedule's factor before every step.
        """
        raise NotImplementedError
