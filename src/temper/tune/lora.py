"""LoRA: a low-rank matrix beside each frozen one.

Decisions:
- The adapter is a forward hook on the frozen module, which keeps its path and its weights: taking the hook off gives
  the base back bit for bit.
- A target is a part of the anatomy. On a fused module (Phi-3's qkv) each part has an adapter of its own on its own
  slice of the outputs, as if the family were not fused; saved, they become one adapter of the whole module.

Legend: T tokens, I input features, O output features, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import SettingError
from temper.delta.base import Provenance
from temper.delta.low_rank import Factors, LowRankDelta, spread, stack
from temper.models.anatomy import Part, add_to_part
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, Tuning, filled
from temper.tune.init.base import LowRankInit, Start, Wanted
from temper.tune.targets import DESCRIPTION, EVERY_PART, check_patterns, matches, select_parts


@dataclass
class Adapter:
    """One part's low-rank update: y <- y + scaling * B A dropout(x)."""

    part: Part
    a_RI: nn.Parameter
    b_OR: nn.Parameter
    scaling: float
    rows_O: Tensor | None
    """int64 output features of the module that the part is, None for all"""
    start: Start | None = None
    """the first factors where their product is not 0: it is taken off again, so that training starts at the base"""

    @property
    def name(self) -> str:
        return f"{self.part.path}.{self.part.name}"

    def add_to(self, out: Tensor, x_TI: Tensor, dropout: float, is_training: bool) -> Tensor:
        """Return the module's output with this part's update added."""
        if not torch.is_autocast_enabled(x_TI.device.type):  # which would cast it back
            x_TI = x_TI.to(self.a_RI.dtype)
        x_TI = F.dropout(x_TI, dropout, is_training)
        update_TO = F.linear(F.linear(x_TI, self.a_RI), self.b_OR * self.scaling)
        if self.start is not None:
            update_TO = update_TO - F.linear(F.linear(x_TI, self.start.a_RI), self.start.b_OR * self.scaling)
        update_TO = update_TO.to(out.dtype)
        return out + update_TO if self.rows_O is None else out.index_add(-1, self.rows_O, update_TO)

    def factors(self) -> Factors:
        """Return the part's update."""
        trained = Factors(self.a_RI.detach(), self.b_OR.detach(), self.scaling, self.part.is_transposed)
        if self.start is None:
            return trained
        return stack([trained, Factors(self.start.a_RI, -self.start.b_OR, self.scaling, self.part.is_transposed)])


class LoRATuning(Tuning):
    """Adapters at work on one model."""

    def __init__(self, model: Model, adapters: list[Adapter], dropout: float, method: dict[str, Any]) -> None:
        self.model, self.adapters, self.dropout, self.method = model, adapters, dropout, method
        self.provenance = Provenance(
            base_fingerprint=model.fingerprint, base_name=str(model.folder or ""), method=method
        )
        by_path: dict[str, list[Adapter]] = {}
        for adapter in adapters:
            by_path.setdefault(adapter.part.path, []).append(adapter)
        self.by_path = by_path
        self._handles = [
            model.module.get_submodule(path).register_forward_hook(partial(self._hook, members))
            for path, members in by_path.items()
        ]

    def _hook(self, adapters: list[Adapter], module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        for adapter in adapters:
            out = adapter.add_to(out, args[0], self.dropout, module.training)
        return out

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for adapter in self.adapters:
            yield f"{adapter.name}.lora_A", adapter.a_RI
            yield f"{adapter.name}.lora_B", adapter.b_OR

    def delta(self) -> LowRankDelta:
        """Return the change so far, as a copy."""
        whole = {}
        for path, members in self.by_path.items():
            module = self.model.module.get_submodule(path)
            parts = []
            for adapter in members:
                factors = adapter.factors()
                if adapter.part.rows is not None:
                    factors = spread(factors, adapter.part.rows, _out_features(module, adapter.part))
                parts.append(factors)
            whole[path] = stack(parts)
        return LowRankDelta({path: _copied(factors) for path, factors in whole.items()}, self.provenance)

    def save(self, folder: Path) -> None:
        """Write `delta/` in PEFT's layout."""
        self.delta().save(folder / "delta")

    def merge(self) -> None:
        for adapter in self.adapters:
            factors = adapter.factors()
            add_to_part(self.model.module, adapter.part, (factors.b_OR * factors.scaling) @ factors.a_RI)
        self.detach()

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class LoRA(Tune, name="lora"):
    """Train a low-rank matrix beside each frozen one: W' = W + (alpha / r) B A.

    A (r x in) starts uniform as a linear layer does, B (out x r) at zero, so that the start is the base. With
    `rs_lora` the factor is alpha / sqrt(r), which keeps the update's size as r grows.

    Paper: LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685; A Rank Stabilization Scaling Factor
    for Fine-Tuning with LoRA, arXiv:2312.03732 (`rs_lora`).
    Symbols: r is `rank`, alpha is `alpha`. Deviation: all projections are adapted by default, not q and v alone,
    as later studies recommend (QLoRA, arXiv:2305.14314).
    """

    default_lr: ClassVar[float] = 2e-4

    rank: PositiveInt = Field(8, description="r, the rank of each update")
    alpha: float | None = Field(None, gt=0, description="numerator of the scaling; 2 x rank where it is not given")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's inputs that is dropped in training")
    targets: tuple[str, ...] = Field(EVERY_PART, description=DESCRIPTION, min_length=1)
    ranks: Mapping[str, PositiveInt] = Field(
        default_factory=dict, description="ranks of some targets, by the same patterns; the last match counts"
    )
    rs_lora: bool = Field(False, description="divide by sqrt(rank) instead of rank")

    init: LowRankInit = Field(
        default_factory=lambda: LowRankInit.parse("kaiming"), description="where the updates start: kaiming, eva, corda"
    )

    def calibration(self, model: Model) -> Calibration | None:
        return self.init.calibration(model, self._wanted(model))

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> LoRATuning:
        wanted = self._wanted(model)
        if self.init.calibration(model, wanted) is not None:
            filled(calibration, "tune.lora.init", self.init.method_name)
        generator = torch.Generator().manual_seed(seed)
        starts = self.init.start(model, wanted, generator, calibration)
        model.module.requires_grad_(False)
        adapters = [
            _adapter(model, each, start) for each, start in zip(wanted, starts, strict=True) if start is not None
        ]
        return LoRATuning(model, adapters, self.dropout, self.written())

    def _wanted(self, model: Model) -> list[Wanted]:
        parts = select_parts(model, self.targets, "tune.lora.targets")
        check_patterns(list(model.anatomy.parts()), self.ranks, "tune.lora.ranks")
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        wanted = []
        for part in parts:
            own = [rank for pattern, rank in self.ranks.items() if matches(part, pattern)]
            rank = own[-1] if own else self.rank
            if rank > min(part.in_features, part.out_features):
                raise SettingError(
                    "tune.lora.ranks" if own else "tune.lora.rank",
                    rank,
                    f"exceeds the smaller side of {part.path} ({part.out_features} x {part.in_features})",
                    f"try {min(part.in_features, part.out_features)} or less",
                )
            wanted.append(Wanted(part, rank, alpha / (math.sqrt(rank) if self.rs_lora else rank)))
        return wanted


def _adapter(model: Model, wanted: Wanted, start: Start) -> Adapter:
    part, device = wanted.part, model.module.get_submodule(wanted.part.path).weight.device
    rows = None if part.rows is None else torch.cat([torch.arange(*run) for run in part.rows]).to(device)
    a_RI, b_OR = start.a_RI.to(device), start.b_OR.to(device)
    return Adapter(
        part,
        nn.Parameter(a_RI.clone()),
        nn.Parameter(b_OR.clone()),
        wanted.scaling,
        rows,
        None if start.is_zero else Start(a_RI, b_OR),
    )


def _out_features(module: nn.Module, part: Part) -> int:
    weight: Tensor = module.get_parameter("weight")
    return weight.shape[1 if part.is_transposed else 0]


def _copied(factors: Factors) -> Factors:
    return Factors(factors.a_RI.clone(), factors.b_OR.clone(), factors.scaling, factors.is_transposed)
