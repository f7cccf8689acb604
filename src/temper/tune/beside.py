"""Updates beside frozen parts: y <- W x + f(x, W x), with W left alone.

A forward hook on the frozen module adds what each of its parts gives; taking the hooks off gives the base back bit for
bit. On a fused module each part has its own slice of the outputs.

Legend: T tokens, I input features, O output features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from temper.delta.base import Delta, Provenance
from temper.delta.dense import DenseDelta
from temper.models.anatomy import Part, add_to_part
from temper.models.model import Model
from temper.tune.base import Tuning


class Update(ABC):
    """What is added to one part."""

    part: Part

    @abstractmethod
    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the numbers that train, by short name."""

    @abstractmethod
    def output(self, x_TI: Tensor, frozen: Callable[[], Tensor], is_training: bool) -> Tensor:
        """Return what is added to the part's output, (T, O).

        Args:
            frozen: gives what the part itself says of the inputs, bias included, (T, O).
        """


class MatrixUpdate(Update):
    """An update that a matrix stands for: f(x) = (Delta W) x."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return what would be added to the part's matrix, float32 (O, I)."""


class BesideTuning(Tuning):
    """Updates at work on one model."""

    def __init__(self, model: Model, updates: Sequence[Update], method: dict[str, Any]) -> None:
        model.module.requires_grad_(False)
        self.model, self.updates = model, list(updates)
        self.provenance = Provenance(
            base_fingerprint=model.fingerprint, base_name=str(model.folder or ""), method=method
        )
        self.by_path: dict[str, list[tuple[Update, Tensor | None]]] = {}
        for update in self.updates:
            part, module = update.part, model.module.get_submodule(update.part.path)
            rows = None if part.rows is None else torch.cat([torch.arange(*run) for run in part.rows])
            rows_O = None if rows is None else rows.to(module.weight.device)
            self.by_path.setdefault(part.path, []).append((update, rows_O))
        self._handles = [
            model.module.get_submodule(path).register_forward_hook(partial(self._hook, members))
            for path, members in self.by_path.items()
        ]

    def _hook(
        self,
        members: list[tuple[Update, Tensor | None]],
        module: nn.Module,
        args: tuple[Tensor, ...],
        out: Tensor,
    ) -> Tensor:
        x_TI = args[0]
        if not torch.is_autocast_enabled(x_TI.device.type):  # which would cast it back
            x_TI = x_TI.float()
        for update, rows_O in members:
            added_TO = update.output(x_TI, partial(_of_rows, out, rows_O), module.training).to(out.dtype)
            out = out + added_TO if rows_O is None else out.index_add(-1, rows_O, added_TO)
        return out

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for update in self.updates:
            for name, parameter in update.parameters():
                yield f"{update.part.path}.{update.part.name}.{name}", parameter

    @abstractmethod
    def delta(self) -> Delta:
        """Return the change so far, as a copy."""

    def save(self, folder: Path) -> None:
        self.delta().save(folder / "delta")

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class FoldingTuning(BesideTuning):
    """Updates that fold into the matrices that they stand beside."""

    def __init__(self, model: Model, updates: Sequence[MatrixUpdate], method: dict[str, Any]) -> None:
        super().__init__(model, updates, method)
        self.matrices = list(updates)

    def delta(self) -> Delta:
        """Return the change so far, as a copy: whole matrices, where nothing smaller says it."""
        changes: dict[str, Tensor] = {}
        for update in self.matrices:
            part = update.part
            weight: Tensor = self.model.module.get_submodule(part.path).weight
            change = changes.setdefault(f"{part.path}.weight", torch.zeros(weight.shape))
            whole_OI = change.T if part.is_transposed else change
            pieces = update.matrix().cpu().split([stop - start for start, stop in part.runs])
            for (start, stop), piece in zip(part.runs, pieces, strict=True):
                whole_OI[start:stop] = piece
        return DenseDelta(changes, self.provenance)

    def merge(self) -> None:
        for update in self.matrices:
            add_to_part(self.model.module, update.part, update.matrix())
        self.detach()


def _of_rows(out: Tensor, rows_O: Tensor | None) -> Tensor:
    """Return a part's own outputs; no two parts share any, so that what was added for others does not matter."""
    return out if rows_O is None else out.index_select(-1, rows_O)
