"""PS-KD: the model's own past softens its targets, more and more.

Legend: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Format, Row, Sequence
from temper.data.pack import Batch
from temper.models.model import Model
from temper.objectives.base import Loss, Objective
from temper.objectives.sft import TokenLoss
from temper.signals.divergence import compare
from temper.signals.forward import document_sums
from temper.signals.passes import Pass
from temper.signals.reference import Past
from temper.signals.setup import Setup


class ProgressiveTarget(TokenLoss):
    """The model, what it was at the end of the last epoch, and how much that counts now."""

    def __init__(self, model: Model, setup: Setup, most: float) -> None:
        super().__init__(model)
        self.past, self.most = Past(model, setup.trained), most
        self.epoch, self.alpha = 0, 0.0

    def before_step(self, moment: Moment) -> None:
        epoch = int(moment.passes)
        if epoch > self.epoch:
            num_epochs = moment.passes / moment.progress
            self.epoch, self.alpha = epoch, min(1.0, (epoch + 1) / num_epochs) * self.most
            self.past.refresh()

    def further_passes(self, batches: Many[Batch], moment: Moment) -> list[Pass]:
        return [Pass(self.model, batch, heads=2) for batch in batches] if int(moment.passes) else []

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        if self.epoch == 0 or not self.model.module.training:  # held-out losses of all epochs compare
            return super().loss(batch, moment)

        def of_chunk(logq_CV: Tensor, logp_CV: Tensor, targets_C: Tensor) -> Tensor:
            hard_C = -logq_CV.gather(1, targets_C[:, None])[:, 0]
            return (1 - self.alpha) * hard_C - self.alpha * (logp_CV.exp() * logq_CV).sum(1)

        loss_N = compare(self.model, self.past, batch, of_chunk) * batch.weights_N
        sums_B = document_sums(loss_N.detach(), batch)
        weights_B = document_sums(batch.weights_N, batch)
        return Loss(loss_N.sum(), sums_B / weights_B.clamp(min=1e-9), {"alpha": self.alpha * float(weights_B.sum())})

    def remarks(self) -> Many[str]:
        if self.epoch:
            return ()
        return ("objective.ps_kd: no step began after the first epoch, so this was plain sft; train for more epochs",)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "alpha": self.alpha, "past": self.past.state_dict() if self.epoch else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.alpha = state["epoch"], state["alpha"]
        if self.epoch:
            self.past.load_state_dict(state["past"])


class SelfDistillation(Objective, name="ps_kd"):
    """Soften each target by what the model itself predicted at the end of the epoch before.

    L = sum_t w_t H((1 - alpha_t) y + alpha_t P_{t-1}, P_t) / sum_t w_t, H being the cross-entropy, y the data's token
    and alpha_t = alpha_T t / T in epoch t of T. The first epoch has no past and learns from y alone.

    Paper: Self-Knowledge Distillation with Progressive Refinement of Targets, arXiv:2006.12000.
    Symbols: alpha_T is `alpha`, w_t are the loss weights of the data. Deviation: the
    authors' code keeps what was predicted for each example when it was last drawn; here the model at the end of the
    epoch predicts, as the paper's own account has it. A budget in steps counts as the epochs that it comes to.
    Validation is by y alone, since what the past adds grows from epoch to epoch.
    """

    beside: ClassVar[dict[str, Any]] = {"epochs": 2, "steps": None}
    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion", "text"})
    passes_before: ClassVar[float] = 1.0

    alpha: float = Field(0.8, ge=0, le=1, description="alpha_T: share of the model's own past in the last epoch")

    def encode(self, row: Row, encoder: Encoder) -> list[tuple[Sequence, ...]]:
        return [(encoder.supervised(row),)]

    def build(self, model: Model, setup: Setup) -> ProgressiveTarget:
        setup.refuse_moves("objective", self.method_name)
        return ProgressiveTarget(model, setup, self.alpha)
