"""MAS: weights that what the model says depends on are held the strongest, whatever is right.

Legend: N supervised tokens, C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from temper.data.pack import Batch
from temper.models.model import Model
from temper.retain.importance import HeldByImportance
from temper.signals.forward import forward


class MemoryAwareSynapses(HeldByImportance, name="mas"):
    """Add lambda * sum_ij Omega_ij (theta_ij - theta*_ij)^2 to the objective.

    theta* are the weights before the stage, and Omega_ij how much what the model says there depends on them, over
    earlier data: Omega_ij = mean over sequences x_k of |d ||F(x_k)||_2^2 / d theta_ij|. No label counts: the data says
    where the model is to stay as it is and not what is right there.

    Paper: Memory Aware Synapses: Learning what (not) to forget, arXiv:1711.09601 (its global form).
    Symbols: lambda is `strength`. F(x) are the logits, as in the authors' code; of a sequence ||F||^2 is the mean over
    the tokens that are to be predicted. Deviation: Omega is measured anew for each stage and not added up over stages.
    Of an adapter that begins at zero only the side with a gradient there is held (of LoRA, B).
    """

    strength: float = Field(1.0, ge=0, description="lambda: how strongly, per unit of squared distance and Omega")

    @property
    def factor(self) -> float:
        return 2 * self.strength

    def said(self, model: Model, batch: Batch) -> Tensor:
        return forward(model, batch, _squared_norm).mean()

    def importance(self, slope: Tensor) -> Tensor:
        return slope.abs()


def _squared_norm(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    return logits_CV.square().sum(1)
