"""Numbers held by how much earlier data depends on each: what methods share that measure it before the first step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.example import Example
from temper.data.pack import Batch, pack
from temper.data.source import OneOrMore
from temper.models.model import Model
from temper.retain.base import Retain
from temper.retain.l2_start import Anchor
from temper.signals.setup import Setup


class Consolidation(Anchor):
    """An anchor that holds each number by its importance: a mean over sequences, measured before the first step."""

    def __init__(self, method: HeldByImportance, model: Model, setup: Setup, examples: list[Example]) -> None:
        super().__init__(setup.trained, method.factor)
        self.method, self.model, self.computing, self.examples = method, model, setup.computing, examples

    def before_step(self, moment: Moment) -> None:
        if self.importances is None:
            self.importances = self._measured()

    def _measured(self) -> list[Tensor]:
        module = self.model.module
        was_training = module.training
        module.eval()
        resting = [weight for weight in self.weights if not weight.requires_grad]
        for weight in resting:
            weight.requires_grad_(True)
        sums = [torch.zeros_like(weight) for weight in self.weights]
        sequences = [sequence for example in self.examples for sequence in example.sequences]
        for sequence in sequences:
            batch = pack([Example((sequence,))]).to(self.weights[0].device)
            with self.computing():
                said = self.method.said(self.model, batch)
            for total, slope in zip(sums, torch.autograd.grad(said, self.weights, allow_unused=True), strict=True):
                if slope is not None:
                    total += self.method.importance(slope)
        for weight in resting:
            weight.requires_grad_(False)
        module.train(was_training)
        return [total / len(sequences) for total in sums]

    def state_dict(self) -> dict[str, Any]:
        return {"importances": self.importances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.weights[0].device
        self.importances = [importance.to(device) for importance in state["importances"]]


class HeldByImportance(Retain):
    """A method that adds factor / 2 * sum_i importance_i (theta_i - theta*_i)^2 to the objective."""

    of: OneOrMore = Field(
        (), description="the earlier data: a source, or a list of them; the stage's own where none is named"
    )
    examples: PositiveInt = Field(256, description="rows from which it is measured what matters, at most")

    @property
    @abstractmethod
    def factor(self) -> float:
        """How strongly numbers are held, per unit of half the squared distance and importance."""

    @abstractmethod
    def said(self, model: Model, batch: Batch) -> Tensor:
        """Return what the model says of one sequence as a scalar, whose slope tells what matters."""

    @abstractmethod
    def importance(self, slope: Tensor) -> Tensor:
        """Return what one sequence's slope adds to the importance of each number."""

    def build(self, model: Model, setup: Setup) -> Consolidation:
        setup.refuse_moves("retain", self.method_name)
        examples = setup.examples(self.of, self.examples)
        if not examples:
            key = f"retain.{self.method_name}.of"
            raise SettingError(key, self.of, "has no row that can be used", "name other data")
        return Consolidation(self, model, setup, examples)
