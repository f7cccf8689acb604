"""A change held as one whole tensor per parameter.

What is lazy stays lazy: a difference of two models, a sum or a multiple is computed when a parameter is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from temper.core.errors import ModelError, nearest
from temper.delta.base import Delta, Provenance, check_shape
from temper.delta.tensors import ComputedTensors, open_weights, read_prompts, read_tensors, with_zeros
from temper.models.model import Model

SHARD_BYTES = 2**31
"""At most this much is held while a delta is written, and a tensor more."""


class DenseDelta(Delta, kind="dense"):
    """A change held as one tensor per parameter, of its stored shape."""

    def __init__(self, tensors: Mapping[str, Tensor], provenance: Provenance | None = None) -> None:
        self.tensors = tensors
        self.provenance = provenance or Provenance()

    @classmethod
    def between(
        cls,
        tuned: Path | Model | nn.Module,
        base: Path | Model | nn.Module,
        provenance: Provenance | None = None,
    ) -> Self:
        """Return what was done to `base` to make `tuned`, for the parameters that differ.

        A bias that only `tuned` has was 0.

        Both are read once, a tensor at a time, to find these. From two folders the differences are computed when
        asked for; a model in memory may change later, so that its differences are computed and held at once.

        Raises:
            ModelError: a parameter that only one of them has, or has in another shape, or other soft prompts.
        """
        if not torch.equal(read_prompts(tuned), read_prompts(base)):
            raise ModelError(
                "the models read other soft prompts, which no difference of weights can hold; compare models with the "
                "same prompts, or take the change since the stage that made the prompt"
            )
        new: Mapping[str, Tensor] = open_weights(tuned)
        old: Mapping[str, Tensor] = open_weights(base)
        gained = [name for name in new if name not in old and name.endswith(".bias")]
        old = with_zeros(old, {name: new[name].shape for name in gained if f"{name[:-5]}.weight" in old})
        for name in sorted(set(new) ^ set(old)):
            here, there = ("tuned model", "base") if name in new else ("base", "tuned model")
            raise ModelError(f"{name}: is in the {here} and not in the {there}; compare models of one architecture")
        changed = []
        for name in old:
            value, original = new[name], old[name]
            check_shape(name, value.shape, original.shape)
            if not torch.equal(value.float(), original.float()):
                changed.append(name)
        if provenance is None and isinstance(base, Model):
            provenance = Provenance(base_fingerprint=base.fingerprint)
        changes = ComputedTensors(changed, lambda name: new[name].float() - old[name].float())
        is_lasting = isinstance(tuned, Path) and isinstance(base, Path)
        return cls(changes if is_lasting else dict(changes), provenance)

    def names(self) -> Sequence[str]:
        return list(self.tensors)

    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"{name}: the delta does not change it; {nearest(name, self.tensors)}")
        return self.tensors[name].to("cpu" if like is None else like.device, torch.float32)

    @property
    def num_values(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def scale(self, factor: float) -> DenseDelta:
        return DenseDelta(ComputedTensors(self.tensors, lambda name: self.update(name) * factor), self.provenance)

    def write(self, folder: Path) -> None:
        for file in folder.glob("delta-*.safetensors"):
            file.unlink()
        shard: dict[str, Tensor] = {}
        num_shards = num_bytes = 0

        def flush() -> None:
            nonlocal num_shards, num_bytes
            num_shards, num_bytes = num_shards + 1, 0
            save_file(shard, folder / f"delta-{num_shards:05d}.safetensors", metadata={"format": "pt"})
            shard.clear()

        for name in self.names():
            # A clone, since what is saved may not share its memory with another tensor of the shard.
            shard[name] = self.update(name).contiguous().clone()
            num_bytes += shard[name].nbytes
            if num_bytes >= SHARD_BYTES:
                flush()
        if shard or not num_shards:
            flush()

    @classmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        return cls(read_tensors(sorted(folder.glob("delta-*.safetensors"))), provenance)


def add(*deltas: Delta) -> Delta:
    """Return the sum of changes to one base: in their own form where they are of one kind that has one
    (low-rank ones stack their ranks), else dense, computed one tensor at a time.
    """
    assert deltas, "a sum needs a delta"
    if len(deltas) > 1:
        deltas = tuple(delta.plain() for delta in deltas)
    kind = type(deltas[0])
    if all(type(delta) is kind for delta in deltas):
        same = kind.add_same(deltas)
        if same is not None:
            return same

    def total(name: str) -> Tensor:
        changing = [delta for delta in deltas if name in names[delta]]
        result = changing[0].update(name)
        for delta in changing[1:]:
            update = delta.update(name)
            check_shape(name, update.shape, result.shape)
            result = result + update
        return result

    names = {delta: set(delta.names()) for delta in deltas}
    every = dict.fromkeys(name for delta in deltas for name in delta.names())
    return DenseDelta(ComputedTensors(every, total), merged_provenance(deltas))


def subtract(first: Delta, second: Delta) -> Delta:
    """Return `first - second`."""
    return add(first, second.scale(-1.0))


def merged_provenance(deltas: Sequence[Delta]) -> Provenance:
    """Return the provenance of a sum: the first one's base, everybody's methods and data."""
    methods = [delta.provenance.method for delta in deltas if delta.provenance.method]
    data = {label: name for delta in deltas for label, name in delta.provenance.data.items()}
    return replace(deltas[0].provenance, method={"sum": methods} if methods else {}, data=data)
