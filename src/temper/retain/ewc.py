"""EWC: weights that earlier data depends on are held the strongest."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from temper.data.pack import Batch
from temper.models.model import Model
from temper.retain.importance import HeldByImportance
from temper.signals.forward import token_logprobs


class ElasticWeightConsolidation(HeldByImportance, name="ewc"):
    """Add lambda / 2 * sum_i F_i (theta_i - theta*_i)^2 to the objective.

    theta* are the weights before the stage, F the diagonal of the Fisher information there, over earlier data:
    F_i = mean over sequences of (d log p(y|x) / d theta_i)^2.

    Paper: Overcoming catastrophic forgetting in neural networks, arXiv:1612.00796.
    Symbols: lambda is `strength`. Deviation: y is what the data says and not drawn from the model (the empirical
    Fisher information); one penalty for the stage's start stands for all stages before it. Of an adapter that begins
    at zero only the side with a gradient there is held (of LoRA, B).
    """

    strength: float = Field(100.0, ge=0, description="lambda: how strongly, per unit of squared distance and Fisher")

    @property
    def factor(self) -> float:
        return self.strength

    def said(self, model: Model, batch: Batch) -> Tensor:
        return (token_logprobs(model, batch) * batch.weights_N).sum()

    def importance(self, slope: Tensor) -> Tensor:
        return slope.square()
