"""EWC: weights that earlier data depends on are held the strongest."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.example import Example
from temper.data.pack import pack
from temper.data.source import OneOrMore
from temper.models.model import Model
from temper.retain.base import Retain
from temper.retain.l2_start import Anchor
from temper.signals.forward import token_logprobs
from temper.signals.setup import Setup


class Consolidation(Anchor):
    """An anchor that holds each number by its Fisher information, measured before the first step."""

    def __init__(self, model: Model, setup: Setup, strength: float, examples: list[Example]) -> None:
        super().__init__(setup.trained, strength)
        self.model, self.computing, self.examples = model, setup.computing, examples

    def before_step(self, moment: Moment) -> None:
        if self.importances is None:
            self.importances = self._fisher()

    def _fisher(self) -> list[Tensor]:
        """Return the mean over sequences of the squared gradient of the sequence's log-probability."""
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
                logprob = (token_logprobs(self.model, batch) * batch.weights_N).sum()
            for total, slope in zip(sums, torch.autograd.grad(logprob, self.weights, allow_unused=True), strict=True):
                if slope is not None:
                    total += slope.square()
        for weight in resting:
            weight.requires_grad_(False)
        module.train(was_training)
        return [total / len(sequences) for total in sums]

    def state_dict(self) -> dict[str, Any]:
        return {"importances": self.importances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.weights[0].device
        self.importances = [importance.to(device) for importance in state["importances"]]


class ElasticWeightConsolidation(Retain, name="ewc"):
    """Add lambda / 2 * sum_i F_i (theta_i - theta*_i)^2 to the objective.

    theta* are the weights before the stage, F the diagonal of the Fisher information there, over earlier data:
    F_i = mean over sequences of (d log p(y|x) / d theta_i)^2.

    Paper: Overcoming catastrophic forgetting in neural networks, arXiv:1612.00796.
    Symbols: lambda is `strength`. Deviation: y is what the data says and not drawn from the model (the empirical
    Fisher information); one penalty for the stage's start stands for all stages before it. Of an adapter that begins
    at zero only the side with a gradient there is held (of LoRA, B).
    """

    of: OneOrMore = Field(
        (), description="the earlier data: a source, or a list of them; the stage's own where none is named"
    )
    strength: float = Field(100.0, ge=0, description="lambda: how strongly, per unit of squared distance and Fisher")
    examples: PositiveInt = Field(256, description="rows from which the Fisher information is measured, at most")

    def build(self, model: Model, setup: Setup) -> Consolidation:
        setup.refuse_moves("retain", self.method_name)
        examples = setup.examples(self.of, self.examples)
        if not examples:
            raise SettingError("retain.ewc.of", self.of, "has no row that can be used", "name other data")
        return Consolidation(model, setup, self.strength, examples)
