"""SpIEL: sparse changes whose places are dropped and regrown while they train.

Legend: O x I a matrix, K active entries, J candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.models.anatomy import Part
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune
from temper.tune.entries import Entries, EntriesTuning, num_active
from temper.tune.targets import DESCRIPTION, EVERY_PART, select_parts


class GrowingEntries(Entries):
    """Entries that gather what says where to grow: candidates' gradients (ag), or SM3's accumulators (ma)."""

    def __init__(self, module: nn.Module, part: Part, index_K: Tensor) -> None:
        super().__init__(module, part, index_K)
        self.phase: Literal["off", "first", "gather"] = "off"
        self.dense_OI: Tensor | None = None
        self.candidate_J = torch.empty(0, dtype=torch.int64, device=self.weight.device)
        self.gradient_J = torch.empty(0, device=self.weight.device)
        self.row_O = torch.zeros(part.out_features, device=self.weight.device)
        self.column_I = torch.zeros(part.in_features, device=self.weight.device)

    def see(self, gradient_OI: Tensor) -> None:
        if self.phase == "first":
            self.dense_OI = gradient_OI.float() if self.dense_OI is None else self.dense_OI + gradient_OI
        elif self.phase == "gather":
            self.gradient_J = self.gradient_J + gradient_OI.reshape(-1)[self.candidate_J].float()

    def choose_candidates(self) -> None:
        """Keep of the first step's dense gradient only the K largest."""
        if self.dense_OI is not None:
            flat = self.dense_OI.reshape(-1)
            self.candidate_J = flat.abs().topk(len(self.index_K)).indices.sort().values
            self.gradient_J, self.dense_OI = flat[self.candidate_J], None

    def accumulate(self) -> None:
        """SM3: nu = min(row, column) + g^2 at each active entry; row and column take on the largest nu in them."""
        assert self.delta_K.grad is not None
        row_K, column_K = self.index_K // self.part.in_features, self.index_K % self.part.in_features
        nu_K = torch.minimum(self.row_O[row_K], self.column_I[column_K]) + self.delta_K.grad.square()
        self.row_O = self.row_O.scatter_reduce(0, row_K, nu_K, "amax")
        self.column_I = self.column_I.scatter_reduce(0, column_K, nu_K, "amax")

    def reselect(self, rule: str, share: float) -> None:
        """Drop the smallest changes and grow as many elsewhere."""
        count = int(share * len(self.index_K))
        smallest = self.delta_K.detach().abs().argsort(stable=True)[:count]
        keeps_K = torch.ones_like(self.index_K, dtype=torch.bool)
        keeps_K[smallest] = False
        places, scores = self.candidate_J, self.gradient_J.abs()
        if rule == "ma":
            scores = torch.outer(self.row_O, self.column_I).reshape(-1)
            places = torch.arange(len(scores), device=scores.device)
            # What is dropped may not come back at once: its accumulators know it best.
            free = torch.ones_like(scores, dtype=torch.bool)
            free[self.index_K] = False
        else:
            free = ~torch.isin(places, self.index_K[keeps_K])
        places, scores = places[free], scores[free]
        grown = places[scores.argsort(descending=True, stable=True)[:count]]
        # Where there are too few candidates, the largest of what was to be dropped stay.
        stays = self.index_K[smallest]
        stays = stays[~torch.isin(stays, grown)].flip(0)[: count - len(grown)]
        self.move(torch.cat([self.index_K[keeps_K], grown, stays]), lay_down=False)

    def numbers(self) -> dict[str, Tensor]:
        gathered = {"candidate": self.candidate_J, "gradient": self.gradient_J}
        return {**super().numbers(), **gathered, "row": self.row_O, "column": self.column_I}

    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        super().restore(numbers)
        device = self.weight.device
        self.candidate_J, self.gradient_J = numbers["candidate"].to(device), numbers["gradient"].to(device)
        self.row_O, self.column_I = numbers["row"].to(device), numbers["column"].to(device)


class SpIELTuning(EntriesTuning):
    """Growing entries at work."""

    moves_numbers: ClassVar[bool] = True

    def __init__(self, model: Model, settings: SpIEL, entries: list[GrowingEntries]) -> None:
        super().__init__(model, entries, settings.written())
        self.settings, self.growing = settings, entries

    def before_step(self, moment: Moment) -> None:
        settings = self.settings
        place = moment.step % settings.every_steps
        if place == settings.gather_steps:
            is_first = moment.step == settings.gather_steps
            for each in self.growing:
                each.reselect(settings.regrow, 1.0 if is_first else settings.share * (1 - moment.progress))
        gathers = settings.regrow == "ag" and place < settings.gather_steps
        for each in self.growing:
            each.phase = "off" if not gathers else "first" if place == 0 else "gather"

    def before_update(self, moment: Moment) -> None:
        if self.settings.regrow == "ma":
            for each in self.growing:
                each.accumulate()

    def after_step(self, moment: Moment) -> None:
        for each in self.growing:
            each.choose_candidates()


class SpIEL(Tune, name="spiel"):
    """Train sparse changes delta at places eta; every S steps drop the least of them and grow others.

    W' = W + delta at eta. Of each matrix's K changes the k with the smallest |delta| are dropped and k places grow
    from 0 with fresh optimizer state, k = share (1 - progress) K. `regrow: ag` (accumulated gradient): of the K
    candidates with the largest gradient in the first of gamma steps, those with the largest |sum of gradients| over
    these. `regrow: ma` (momentum approximation): those with the largest product of SM3's row and column accumulators.
    The first places are random; after gamma steps all of them are chosen anew.

    Paper: Scaling Sparse Fine-Tuning to Large Language Models, arXiv:2401.16405.
    Symbols: S is `every_steps`, gamma is `gather_steps`. Deviation: SM3's accumulators are the tuner's, so that any
    optimizer will do; new places start with no momentum, where the authors' code starts it at the gathered gradient,
    and Adam corrects all places' averages by the age of the oldest, where that code keeps an age for each; candidates
    are chosen by a whole step's gradient, for which each matrix holds one dense gradient once in S steps.
    """

    default_lr: ClassVar[float] = 1e-4
    needs_gradient: ClassVar[bool] = True

    density: float = Field(0.05, gt=0, lt=1, description="share of a matrix's entries that train")
    regrow: Literal["ag", "ma"] = Field("ag", description="grow by accumulated gradient, or by approximate momentum")
    every_steps: PositiveInt = Field(20, description="S, optimizer steps between reselections")
    gather_steps: PositiveInt = Field(5, description="gamma, steps over which gradients are gathered before one")
    share: float = Field(0.2, gt=0, le=1, description="share of the changes that is replaced at first; falls to 0")
    targets: tuple[str, ...] = Field(EVERY_PART, description=DESCRIPTION, min_length=1)

    @model_validator(mode="after")
    def _gathers_in_time(self) -> SpIEL:
        if self.gather_steps >= self.every_steps:
            raise SettingError(
                "tune.spiel.gather_steps", self.gather_steps, "is not less than every_steps", "gather for fewer steps"
            )
        return self

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> SpIELTuning:
        generator = torch.Generator().manual_seed(seed)
        entries = []
        for part in select_parts(model, self.targets, "tune.spiel.targets"):
            order = torch.randperm(part.in_features * part.out_features, generator=generator)
            entries.append(GrowingEntries(model.module, part, order[: num_active(part, self.density)]))
        return SpIELTuning(model, self, entries)
