"""LIFT: the entries that are largest once a weight is reduced to low rank train.

Legend: O x I a matrix, K active entries, R rank.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from temper.core.schedule import Moment
from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune
from temper.tune.entries import Entries, EntriesTuning, num_active
from temper.tune.targets import DESCRIPTION, EVERY_PART, select_parts

SEED, POWER_ITERATIONS = 0, 4


class LIFTTuning(EntriesTuning):
    """Principal entries at work, found anew every few steps."""

    moves_numbers: ClassVar[bool] = True

    def __init__(self, model: Model, settings: LIFT, entries: list[Entries]) -> None:
        super().__init__(model, entries, settings.written())
        self.settings = settings

    def before_step(self, moment: Moment) -> None:
        if moment.step and moment.step % self.settings.every_steps == 0:
            for each in self.entries:
                each.move(self.settings.principal(each.matrix(), len(each.index_K)), lay_down=True)


class LIFT(Tune, name="lift"):
    """Train the entries that are largest in W_r, each matrix's best approximation of rank r.

    W_r = U_r S_r V_r^T;  the principal weights are the K = density x size entries with the largest |W_r|, found anew
    every few steps as W moves. An entry that stops training keeps what it has learnt; one that stays principal keeps
    its optimizer state.

    Paper: LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised
    Fine-Tuning, arXiv:2506.00772.
    Symbols: r is `rank`. Deviation: what trains are the changes to the entries, so that an optimizer's `weight_decay`
    pulls an entry to the base and not to 0; a density sets K, where the authors' code takes that of a LoRA of some
    rank.
    """

    default_lr: ClassVar[float] = 1e-4

    density: float = Field(0.05, gt=0, lt=1, description="share of a matrix's entries that train")
    rank: PositiveInt = Field(128, description="r, rank of the approximation; a matrix's smaller side at most")
    every_steps: PositiveInt = Field(100, description="optimizer steps between searches")
    svd: Literal["random", "exact"] = Field("random", description="randomised decomposition, or the whole one (slow)")
    targets: tuple[str, ...] = Field(EVERY_PART, description=DESCRIPTION, min_length=1)

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> LIFTTuning:
        entries = []
        for part in select_parts(model, self.targets, "tune.lift.targets"):
            weight_OI = part_weight(model.module, part).detach().float()
            entries.append(Entries(model.module, part, self.principal(weight_OI, num_active(part, self.density))))
        return LIFTTuning(model, self, entries)

    def principal(self, weight_OI: Tensor, count: int) -> Tensor:
        """Return the flat places of the largest entries of the low-rank approximation, (K,)."""
        rank = min(self.rank, *weight_OI.shape)
        if self.svd == "exact":
            u_OR, s_R, vh_RI = torch.linalg.svd(weight_OI, full_matrices=False)
            v_IR = vh_RI.T
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                width = min(2 * rank, *weight_OI.shape)
                u_OR, s_R, v_IR = torch.svd_lowrank(weight_OI, q=width, niter=POWER_ITERATIONS)
        low_OI: Tensor = (u_OR[:, :rank] * s_R[:rank]) @ v_IR[:, :rank].T
        return low_OI.abs().reshape(-1).topk(count).indices
