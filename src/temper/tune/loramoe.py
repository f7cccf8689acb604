"""LoRAMoE: low-rank experts behind a router beside each projection of the MLP, balanced by type of data.

Legend: N experts, M examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from temper.core.errors import DataError, SettingError
from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.models.model import Model
from temper.signals.caching import carry, slopes_of
from temper.signals.calibration import Calibration
from temper.signals.forward import hidden_states
from temper.signals.passes import Pass
from temper.tune.base import Tune
from temper.tune.experts import ExpertsTuning, ExpertsUpdate, starting_experts
from temper.tune.targets import DESCRIPTION, select_parts

MLP = ("gate", "up", "down")
EPSILON = 1e-10
"""of the balancing term, as in the authors' code"""
SWITCH = "tune.loramoe.beta"


class LoRAMoETuning(ExpertsTuning):
    """Balanced experts at work on one model."""

    def __init__(self, model: Model, updates: Sequence[ExpertsUpdate], settings: LoRAMoE) -> None:
        super().__init__(model, updates, settings.written())
        self.settings = settings
        self.terms: dict[int, Callable[[list[Tensor]], Tensor]] = {}
        """by a micro-batch's identity, what it adds to the objective, from its masses"""

    def before_batches(self, batches: Sequence[Batch], moment: Moment) -> None:
        self.terms = {}
        if not self.settings.beta:
            return
        coefficient_MN = torch.cat([self.settings.coefficients(batch) for batch in batches])
        if len(batches) == 1:
            self.terms[id(batches[0])] = lambda masses: self._balance(masses, coefficient_MN)
            return
        # The term is one of the whole step: its slope at each mass comes from a pass ahead of those that train.
        ahead: list[list[Tensor]] = []
        for batch in batches:
            with torch.no_grad():
                self.look()
                hidden_states(self.model, batch)
            ahead.append(self.masses(batch, SWITCH))
        whole, slopes = slopes_of(lambda masses: self._balance(masses, coefficient_MN), ahead)
        for batch, own, masses in zip(batches, slopes, ahead, strict=True):
            self.terms[id(batch)] = partial(carry, slopes=own, value=whole / len(batches), taken_at=masses)

    def further_passes(self, batches: Sequence[Batch], moment: Moment) -> list[Pass]:
        looks_ahead = self.settings.beta and len(batches) > 1
        return [Pass(self.model, batch, heads=0, once=True) for batch in batches] if looks_ahead else []

    def before_pass(self, batch: Batch) -> None:
        if id(batch) in self.terms:
            self.look()

    def after_pass(self, batch: Batch) -> Tensor | None:
        term = self.terms.get(id(batch))
        return None if term is None else term(self.masses(batch, SWITCH))

    def _balance(self, masses: Sequence[Tensor], coefficient_MN: Tensor) -> Tensor:
        return self.settings.beta * torch.stack([balance(mass_MN, coefficient_MN) for mass_MN in masses]).sum()


class LoRAMoE(Tune, name="loramoe"):
    """Train low-rank experts behind a router: y = W x + (alpha / r) sum_n G_n(x) B_n A_n x, G(x) = softmax(W_g x).

    Half of the N experts form the group of world knowledge, half that of all other tasks. Q_nm is the sum of G_n over
    the tokens of example m, and I_nm = 1 + delta where expert n's group is of m's type, else 1 - delta. With
    Z = I * Q, each projection adds beta L_lbc = beta var(Z) / mean(Z)^2 to the objective. It is least where Z is even:
    within a group all experts count the same, and the two types of data are parted. By this formula, which the
    authors' code has too, an example counts (1 + delta) / (1 - delta) times as much for the experts of the *other*
    group; the split is the same whatever the groups are called. The router reads every token, so the result is
    attached and never folded.

    Paper: LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via MoE-Style Plugin,
    arXiv:2312.09979.
    Symbols: N is `num_experts`, r is `rank`, alpha is `alpha`, delta is `delta`, beta is `beta`; an example's type is
    its `column`, knowledge if it is one of `knowledge`. Deviation: as in the authors' code the variance (unbiased) is
    over the squared mean, where the paper divides by the mean, and the term is a sum over projections; but it is that
    of the whole step, where the code takes each micro-batch by itself. For that a step of several micro-batches costs
    a forward pass more, and with dropout its slopes are those of another draw. Without `knowledge` I is 1.
    """

    default_lr: ClassVar[float] = 2e-4
    leaves_base: ClassVar[bool] = True

    num_experts: int = Field(6, ge=2, multiple_of=2, description="N, experts beside each projection; an even number")
    rank: PositiveInt = Field(4, description="r, the rank of each expert")
    alpha: float = Field(32.0, gt=0, description="numerator of the scaling alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the experts' inputs that is dropped in training")
    beta: float = Field(0.1, ge=0, description="factor of the balancing term; 0: routers are free")
    delta: float = Field(0.1, ge=0, le=1, description="how far experts are drawn to their own type of data")
    column: str = Field("task", description="column of a row that says what type of data it is")
    knowledge: tuple[str, ...] = Field((), description="what that column says of rows with knowledge of the world")
    targets: tuple[str, ...] = Field((), description=f"{DESCRIPTION}; empty: the MLP's")

    def idle(self) -> dict[str, str]:
        return (
            {} if self.knowledge else dict.fromkeys(("delta", "column"), "beside `knowledge`, which tells types apart")
        )

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> LoRAMoETuning:
        generator = torch.Generator().manual_seed(seed)
        updates = []
        own = self.targets or tuple(part.name for part in model.anatomy.blocks[0].parts if part.name in MLP)
        for part in select_parts(model, own, "tune.loramoe.targets"):
            narrow = min(part.in_features, part.out_features)
            if self.rank > narrow:
                reason = f"exceeds the smaller side of {part.path} ({part.out_features} x {part.in_features})"
                raise SettingError("tune.loramoe.rank", self.rank, reason, f"try {narrow} or less")
            device = model.module.get_submodule(part.path).weight.device
            shape = (self.num_experts, self.rank)
            experts = starting_experts(part, shape, self.alpha / self.rank, generator, device)
            updates.append(ExpertsUpdate(part, experts, self.dropout))
        return LoRAMoETuning(model, updates, self)

    def coefficients(self, batch: Batch) -> Tensor:
        """Return I, (M, N).

        Raises:
            DataError: a row without the column.
        """
        if not self.knowledge:
            return torch.ones(batch.num_examples, self.num_experts, device=batch.tokens_T.device)
        for columns, origin in zip(batch.columns, batch.origins, strict=True):
            if self.column not in columns:
                reason = f"has no column {self.column!r}, by which tune.loramoe tells types of data apart"
                raise DataError(origin.file, origin.line, reason, "give every row one, or leave `knowledge` empty")
        is_knowledge_M = torch.tensor([str(columns[self.column]) in self.knowledge for columns in batch.columns])
        is_for_knowledge_N = torch.arange(self.num_experts) < self.num_experts // 2
        fits_MN = is_knowledge_M[:, None] == is_for_knowledge_N
        return torch.where(fits_MN, 1 + self.delta, 1 - self.delta).to(batch.tokens_T.device)


def balance(mass_MN: Tensor, coefficient_MN: Tensor) -> Tensor:
    """Return L_lbc of one projection: the squared coefficient of variation of Z = I * Q."""
    z_MN = coefficient_MN * mass_MN
    return z_MN.var() / (z_MN.mean().square() + EPSILON)
