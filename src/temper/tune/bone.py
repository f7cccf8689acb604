"""Bone: one small block, repeated along each row of blocks of a frozen matrix.

Legend: T tokens, I input features, O output features, R block size, M = I / R and N = O / R blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import SettingError
from temper.delta.base import Delta
from temper.delta.low_rank import Factors, LowRankDelta, spread, stack
from temper.models.anatomy import Part, part_weight
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune
from temper.tune.beside import FoldingTuning, MatrixUpdate
from temper.tune.targets import DESCRIPTION, EVERY_PART, select_parts


class RowUpdate(MatrixUpdate):
    """Delta W = [b^T b^T ...]: a low-rank update whose A is a row of identities."""

    def __init__(self, part: Part, size: int, device: torch.device) -> None:
        self.part, self.size = part, size
        self.block_RO = nn.Parameter(torch.zeros(size, part.out_features, device=device))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "bone", self.block_RO

    def output(self, x_TI: Tensor, frozen: Callable[[], Tensor], is_training: bool) -> Tensor:
        padded = F.pad(x_TI, (0, -x_TI.shape[-1] % self.size))
        grouped = padded.reshape(*padded.shape[:-1], -1, self.size).sum(-2)
        return grouped @ self.block_RO.to(padded.dtype)

    def factors(self) -> Factors:
        """Return the update as factors."""
        repeats = -(-self.part.in_features // self.size)
        a_RI = torch.eye(self.size).repeat(1, repeats)[:, : self.part.in_features].contiguous()
        return Factors(a_RI, self.block_RO.detach().T.cpu().contiguous(), 1.0, self.part.is_transposed)

    def matrix(self) -> Tensor:
        factors = self.factors()
        return factors.b_OR @ factors.a_RI


class GuidedUpdate(MatrixUpdate):
    """Delta W = W b + b, block by block: W's own blocks guide the update."""

    def __init__(self, part: Part, size: int, module: nn.Module) -> None:
        self.part, self.size, self.module = part, size, module
        device = part_weight(module, part).device
        self.block_NRR = nn.Parameter(torch.zeros(part.out_features // size, size, size, device=device))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "bone", self.block_NRR

    def output(self, x_TI: Tensor, frozen: Callable[[], Tensor], is_training: bool) -> Tensor:
        return F.linear(x_TI, self._change().to(x_TI.dtype))

    def _change(self) -> Tensor:
        weight_OI = part_weight(self.module, self.part).detach().float()
        size, (out_features, in_features) = self.size, weight_OI.shape
        blocks_NRMR = weight_OI.reshape(out_features // size, size, in_features // size, size)
        blocks_MNRR = blocks_NRMR.permute(2, 0, 1, 3)
        change_MNRR = blocks_MNRR @ self.block_NRR + self.block_NRR
        return change_MNRR.permute(1, 2, 0, 3).reshape(weight_OI.shape)

    def matrix(self) -> Tensor:
        return self._change().detach()


class BoneTuning(FoldingTuning):
    """Blocks at work on one model."""

    def delta(self) -> Delta:
        rows = [update for update in self.matrices if isinstance(update, RowUpdate)]
        if not rows:
            return super().delta()
        factors: dict[str, list[Factors]] = {}
        for update in rows:
            part, own = update.part, update.factors()
            weight: Tensor = self.model.module.get_submodule(part.path).weight
            if part.rows is not None:
                own = spread(own, part.rows, weight.shape[1 if part.is_transposed else 0])
            factors.setdefault(part.path, []).append(own)
        return LowRankDelta({path: stack(parts) for path, parts in factors.items()}, self.provenance)


class Bone(Tune, name="bone"):
    """Train one block b for each row of blocks of a frozen matrix W, repeated along that row.

    `form: row` (Bone-row): W' = W + [b^T b^T ... b^T], b (r x out), so that y = W x + b^T (sum of x's groups of r).
    `form: guided` (Bone-bat, block affine): W'_ij = W_ij + W_ij b_i + b_i for each r x r block of W, b (out/r x r x r).
    Both start at b = 0, which is the base.

    Paper: Bone: Block-Affine Adaptation of Large Language Models, arXiv:2409.15371.
    Symbols: r is `block`; equal to PEFT's (`MissConfig`, with `init_weights` True and "bat"). Deviation: none. Saved,
    a row update is a PEFT LoRA adapter of rank r, a guided one a dense change.
    """

    default_lr: ClassVar[float] = 2e-4
    leaves_base: ClassVar[bool] = True

    block: PositiveInt = Field(16, description="r, side of a block in numbers; where guided, a divisor of both sides")
    form: Literal["row", "guided"] = Field("row", description="row: W + b; guided: W + W b + b")
    targets: tuple[str, ...] = Field(EVERY_PART, description=DESCRIPTION, min_length=1)

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> BoneTuning:
        parts = select_parts(model, self.targets, "tune.bone.targets")
        updates = [self._update(model, part) for part in parts]
        return BoneTuning(model, updates, self.written())

    def _update(self, model: Model, part: Part) -> MatrixUpdate:
        sides = {"in": part.in_features, "out": part.out_features}
        if self.form == "row" and self.block > part.in_features:
            raise self._misfit(part, f"exceeds the {part.in_features} inputs", f"try {part.in_features} or less")
        if self.form == "row":
            return RowUpdate(part, self.block, model.module.get_submodule(part.path).weight.device)
        if any(side % self.block for side in sides.values()):
            common = math.gcd(part.in_features, part.out_features)
            shape = f"{part.out_features} x {part.in_features}"
            raise self._misfit(part, f"does not divide both sides ({shape})", f"try a divisor of {common}")
        return GuidedUpdate(part, self.block, model.module)

    def _misfit(self, part: Part, reason: str, fix: str) -> SettingError:
        return SettingError("tune.bone.block", self.block, f"{reason} of {part.path}", fix)
