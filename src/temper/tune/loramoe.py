"""LoRAMoE: low-rank experts behind a router beside each projection of the MLP, balanced by type of data.

Legend: T tokens, I input features, O output features, N experts, R rank, M examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import DataError, SettingError, TrainingError
from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.delta.experts import Experts, ExpertsDelta, Placed
from temper.models.anatomy import Part
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.signals.forward import hidden_states
from temper.tune.base import Tune
from temper.tune.beside import BesideTuning, Update
from temper.tune.targets import DESCRIPTION, select_parts

MLP = ("gate", "up", "down")
EPSILON = 1e-10
"""of the balancing term, as in the authors' code"""


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

    def mass(self, batch: Batch) -> Tensor:
        """Return Q, what each expert counted for in all tokens of each example, (M, N), and look no further.

        Raises:
            TrainingError: the model read other tokens than the batch has.
        """
        seen, self.seen = self.seen or [], None
        read = {len(gate_TN) for gate_TN in seen} or {0}
        if read != {batch.num_tokens}:
            raise TrainingError(
                f"tune.loramoe.beta: the model read {max(read)} tokens of a batch of {batch.num_tokens}, so that no "
                "token's type is known; set it to 0, or take an objective that reads the batch as it is"
            )
        example_T = torch.tensor(batch.examples).repeat_interleave(torch.tensor(batch.lengths)).to(seen[0].device)
        mass_MN = seen[0].new_zeros(batch.num_examples, seen[0].shape[1])
        for gate_TN in seen:
            mass_MN = mass_MN.index_add(0, example_T, gate_TN)
        return mass_MN


class LoRAMoETuning(BesideTuning):
    """Experts at work on one model."""

    def __init__(self, model: Model, updates: Sequence[ExpertsUpdate], settings: LoRAMoE) -> None:
        super().__init__(model, updates, settings.written())
        self.experts, self.settings = list(updates), settings
        self.terms: dict[int, Callable[[list[Tensor]], Tensor]] = {}
        """by a micro-batch's identity, what it adds to the objective, from its masses"""

    def look(self) -> None:
        for each in self.experts:
            each.seen, each.has_gradient = [], torch.is_grad_enabled()

    def before_batches(self, batches: Sequence[Batch], moment: Moment) -> None:
        self.terms = {}
        if not self.settings.beta:
            return
        if len(batches) == 1:
            coefficient_MN = self.settings.coefficients(batches[0])
            self.terms[id(batches[0])] = lambda masses: self._balance(masses, coefficient_MN)
            return
        # The term is one of the whole step: its slope at each mass comes from a pass ahead of those that train.
        ahead: list[list[Tensor]] = []
        for batch in batches:
            with torch.no_grad():
                self.look()
                hidden_states(self.model, batch)
            ahead.append([each.mass(batch) for each in self.experts])
        joined = [torch.cat(of_one).requires_grad_() for of_one in zip(*ahead, strict=True)]
        coefficient_MN = torch.cat([self.settings.coefficients(batch) for batch in batches])
        with torch.enable_grad():
            balance = self._balance(joined, coefficient_MN)
            slopes = torch.autograd.grad(balance, joined)
        ends = [slope_MN.split([batch.num_examples for batch in batches]) for slope_MN in slopes]
        for batch, *own in zip(batches, *ends, strict=True):
            self.terms[id(batch)] = _tangent(own, balance.detach() / len(batches))

    def before_pass(self, batch: Batch) -> None:
        if id(batch) in self.terms:
            self.look()

    def after_pass(self, batch: Batch) -> Tensor | None:
        term = self.terms.get(id(batch))
        return None if term is None else term([each.mass(batch) for each in self.experts])

    def _balance(self, masses: Sequence[Tensor], coefficient_MN: Tensor) -> Tensor:
        return self.settings.beta * torch.stack([balance(mass_MN, coefficient_MN) for mass_MN in masses]).sum()

    def delta(self) -> ExpertsDelta:
        placed = [Placed(each.part.path, each.part.rows, each.experts.copy()) for each in self.experts]
        return ExpertsDelta(placed, self.provenance)

    def merge(self) -> None:
        """Leave the experts attached to the model, frozen: they are no change of its weights."""
        delta = self.delta()
        self.detach()
        delta.apply(self.model)


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

    num_experts: int = Field(6, ge=2, multiple_of=2, description="N, experts beside each projection; an even number")
    rank: PositiveInt = Field(4, description="r, the rank of each expert")
    alpha: float = Field(32.0, gt=0, description="numerator of the scaling alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the experts' inputs that is dropped in training")
    beta: float = Field(0.1, ge=0, description="factor of the balancing term; 0: routers are free")
    delta: float = Field(0.1, ge=0, le=1, description="how far experts are drawn to their own type of data")
    column: str = Field("task", description="column of a row that says what type of data it is")
    knowledge: tuple[str, ...] = Field((), description="what that column says of rows with knowledge of the world")
    targets: tuple[str, ...] = Field((), description=f"{DESCRIPTION}; empty: the MLP's")

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
            experts = self._start(part, generator).to(device)
            updates.append(ExpertsUpdate(part, experts, self.dropout))
        return LoRAMoETuning(model, updates, self)

    def _start(self, part: Part, generator: torch.Generator) -> Experts:
        """Return experts that add nothing: router and A uniform as a linear layer starts, B at 0."""
        bound = 1 / math.sqrt(part.in_features)  # Kaiming's uniform bound with a = sqrt(5)
        router_NI = torch.empty(self.num_experts, part.in_features).uniform_(-bound, bound, generator=generator)
        a_NRI = torch.empty(self.num_experts, self.rank, part.in_features).uniform_(-bound, bound, generator=generator)
        return Experts(
            router_NI, a_NRI, torch.zeros(self.num_experts, part.out_features, self.rank), self.alpha / self.rank
        )

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


def _tangent(slopes: Sequence[Tensor], value: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Return a function of masses with these slopes, which is `value` wherever it is asked."""

    def term(masses: list[Tensor]) -> Tensor:
        linear = torch.stack([(slope * mass).sum() for slope, mass in zip(slopes, masses, strict=True)]).sum()
        return value + linear - linear.detach()

    return term
