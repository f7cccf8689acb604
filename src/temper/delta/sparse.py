"""A change of single entries: for each parameter the places that change, and by how much.

Places are flat indices into the parameter as it is stored, ascending, 4 bytes each where they fit.

Legend: K entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from temper.core.errors import ModelError, nearest
from temper.delta.base import Delta, Provenance, check_shape
from temper.delta.dense import merged_provenance

FILE = "sparse.safetensors"


@dataclass(frozen=True)
class SparseChange:
    """The change of one parameter."""

    index_K: Tensor
    """int64, ascending, each place once"""
    value_K: Tensor
    """float32"""
    shape: tuple[int, ...]

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the change in the parameter's shape."""
        whole = torch.zeros(prod(self.shape), device=device)
        whole[self.index_K.to(device)] = self.value_K.to(device)
        return whole.view(self.shape)


class SparseDelta(Delta, kind="sparse"):
    """Changed entries by parameter name."""

    def __init__(self, changes: Mapping[str, SparseChange], provenance: Provenance | None = None) -> None:
        self.changes = dict(changes)
        self.provenance = provenance or Provenance()

    def names(self) -> Sequence[str]:
        return list(self.changes)

    def _of(self, name: str) -> SparseChange:
        if name not in self.changes:
            raise ModelError(f"{name}: the delta does not change it; {nearest(name, self.changes)}")
        return self.changes[name]

    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        return self._of(name).dense("cpu" if like is None else like.device)

    def update_shape(self, name: str) -> tuple[int, ...]:
        return self._of(name).shape

    @property
    def num_values(self) -> int:
        return sum(change.value_K.numel() for change in self.changes.values())

    def scale(self, factor: float) -> SparseDelta:
        scaled = {
            name: SparseChange(change.index_K, change.value_K * factor, change.shape)
            for name, change in self.changes.items()
        }
        return SparseDelta(scaled, self.provenance)

    @classmethod
    def add_same(cls, deltas: Sequence[Self]) -> SparseDelta:
        names = dict.fromkeys(name for delta in deltas for name in delta.changes)
        summed = {
            name: _sum([delta.changes[name] for delta in deltas if name in delta.changes], name) for name in names
        }
        return SparseDelta(summed, merged_provenance(deltas) if len(deltas) > 1 else deltas[0].provenance)

    def write(self, folder: Path) -> None:
        tensors, shapes = {}, {}
        for name, change in self.changes.items():
            is_small = prod(change.shape) < 2**31
            tensors[f"{name}.index"] = change.index_K.cpu().to(torch.int32 if is_small else torch.int64).clone()
            tensors[f"{name}.value"] = change.value_K.detach().cpu().float().clone()
            shapes[name] = list(change.shape)
        save_file(tensors, folder / FILE, metadata={"format": "pt", "shapes": json.dumps(shapes)})

    @classmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        with safe_open(folder / FILE, framework="pt") as file:
            shapes: dict[str, list[int]] = json.loads(file.metadata()["shapes"])
            changes = {
                # Clones: the file may be written again while it is mapped.
                name: SparseChange(
                    file.get_tensor(f"{name}.index").long().clone(),
                    file.get_tensor(f"{name}.value").clone(),
                    tuple(shape),
                )
                for name, shape in shapes.items()
            }
        return cls(changes, provenance)


def _sum(changes: Sequence[SparseChange], name: str) -> SparseChange:
    for change in changes:
        check_shape(name, change.shape, changes[0].shape)
    index_K, place_K = torch.cat([change.index_K for change in changes]).unique(return_inverse=True)
    value_K = torch.zeros(len(index_K)).index_add(0, place_K, torch.cat([change.value_K for change in changes]))
    return SparseChange(index_K, value_K, changes[0].shape)
