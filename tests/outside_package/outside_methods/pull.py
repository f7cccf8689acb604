"""A retention method of another package: weights are pulled back to where they began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from temper.core.schedule import Moment
from temper.models.model import Model
from temper.retain.base import Retain, Retention
from temper.signals.setup import Setup


class Pulling(Retention):
    """The trainable numbers and a copy of their first values."""

    def __init__(self, trained: Sequence[tuple[str, nn.Parameter]], strength: float) -> None:
        self.strength = strength
        self.pairs = [(weight, weight.detach().clone()) for _, weight in trained]

    def penalty(self, moment: Moment) -> Tensor:
        distances = [(weight - start).square().sum() for weight, start in self.pairs]
        return self.strength / 2 * sum(distances[1:], distances[0])

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"starts": [start for _, start in self.pairs]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.pairs = [(weight, start) for (weight, _), start in zip(self.pairs, state["starts"], strict=True)]


class Pull(Retain, name="outside_pull"):
    """Add s / 2 * ||w - w_0||^2 to the objective.

    Paper: Explicit Inductive Bias for Transfer Learning with Convolutional Networks, arXiv:1802.01483.
    """

    example: ClassVar[dict[str, Any]] = {"strength": 0.1}

    strength: float = Field(ge=0, description="s: how strongly, per unit of squared distance")

    def build(self, model: Model, setup: Setup) -> Pulling:
        return Pulling(setup.trained, self.strength)
