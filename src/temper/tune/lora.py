"""LoRA: a low-rank matrix beside each frozen one.

Decisions:
- The adapter is a forward hook on the frozen module, which keeps its path and its weights: taking the hook off gives
  the base back bit for bit.
- A target is a part of the anatomy. On a fused module (Phi-3's qkv) each part has an adapter of its own on its own
  slice of the outputs, as if the family were not fused; saved, they become one adapter of the whole module.

Legend: T tokens, I input features, O output features, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.delta.base import Provenance
from temper.delta.low_rank import Factors, LowRankDelta, spread, stack
from temper.models.anatomy import Part, add_to_part
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tuning
from temper.tune.init.base import Start, Wanted
from temper.tune.low_rank import LowRankTune


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


class LoRA(LowRankTune, name="lora"):
    """Train a low-rank matrix beside each frozen one: W' = W + (alpha / r) B A.

    A (r x in) starts uniform as a linear layer does, B (out x r) at zero, so that the start is the base. With
    `rs_lora` the factor is alpha / sqrt(r), which keeps the update's size as r grows.

    Paper: LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685; A Rank Stabilization Scaling Factor
    for Fine-Tuning with LoRA, arXiv:2312.03732 (`rs_lora`).
    Symbols: r is `rank`, alpha is `alpha`. Deviation: all projections are adapted by default, not q and v alone,
    as later studies recommend (QLoRA, arXiv:2305.14314).
    """

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> LoRATuning:
        started = self.started(model, seed, calibration)
        model.module.requires_grad_(False)
        return LoRATuning(model, [_adapter(model, *each) for each in started], self.dropout, self.written())


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
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if part.is_transposed else 0]


def _copied(factors: Factors) -> Factors:
    return Factors(factors.a_RI.clone(), factors.b_OR.clone(), factors.scaling, factors.is_transposed)
