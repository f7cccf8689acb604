"""A change whose numbers are -s, 0 or s: signs and one scale, in a coded file.

What is ternary are the stored numbers: the entries of a whole change, or those of the factors A and B of a low-rank
one, which stays low-rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from temper.delta.base import Delta, Provenance
from temper.delta.dense import DenseDelta
from temper.delta.golomb import Code, Ternary, decode, encode
from temper.delta.low_rank import Factors, LowRankDelta
from temper.delta.tensors import ComputedTensors

FILE = "ternary.safetensors"


@dataclass(frozen=True)
class Slot:
    """A tensor's place in the flat vector of a change."""

    name: str
    """a parameter; of a low-rank change, a module"""
    shape: tuple[int, ...]
    factor: str = ""
    """`A` or `B` of a low-rank change"""
    scaling: float = 1.0
    is_transposed: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def flatten(delta: Delta) -> tuple[list[Slot], Callable[[Slot], Tensor]]:
    """Return the tensors that hold a change, by name, and a function that reads one of them in float32."""
    whole = delta.plain()
    if isinstance(whole, LowRankDelta):
        slots = []
        for path, part in sorted(whole.factors.items()):
            slots.append(Slot(path, tuple(part.a_RI.shape), "A", part.scaling, part.is_transposed))
            slots.append(Slot(path, tuple(part.b_OR.shape), "B", part.scaling, part.is_transposed))
        factors = whole.factors
        return slots, lambda slot: (factors[slot.name].a_RI if slot.factor == "A" else factors[slot.name].b_OR).float()
    return [Slot(name, whole.update_shape(name)) for name in sorted(whole.names())], lambda slot: whole.update(
        slot.name
    )


class TernaryDelta(Delta, kind="ternary"):
    """Signs and one scale.

    Args:
        slots: the tensors, in the order of the vector.
        signs: -1, 0 or 1 for each of their entries, one after another.
        scale_of_signs: s.
    """

    def __init__(
        self, slots: Sequence[Slot], signs: Ternary, scale_of_signs: float, provenance: Provenance | None = None
    ) -> None:
        self.slots, self.signs, self.scale_of_signs = list(slots), signs, scale_of_signs
        self.provenance = provenance or Provenance()

    @cached_property
    def _starts(self) -> Mapping[Slot, int]:
        ends = np.cumsum([slot.size for slot in self.slots]).tolist()
        return dict(zip(self.slots, [0, *ends[:-1]], strict=True)) if self.slots else {}

    def _tensor(self, slot: Slot) -> Tensor:
        start = self._starts[slot]
        own = torch.from_numpy(self.signs[start : start + slot.size].astype(np.float32)) * self.scale_of_signs
        return own.reshape(slot.shape)

    def plain(self) -> Delta:
        return self._plain

    @cached_property
    def _plain(self) -> Delta:
        if not any(slot.factor for slot in self.slots):
            slots = {slot.name: slot for slot in self.slots}
            return DenseDelta(ComputedTensors(slots, lambda name: self._tensor(slots[name])), self.provenance)
        pairs: dict[str, Factors] = {}
        for a, b in zip(self.slots[::2], self.slots[1::2], strict=True):
            pairs[a.name] = Factors(self._tensor(a), self._tensor(b), a.scaling, a.is_transposed)
        return LowRankDelta(pairs, self.provenance)

    def names(self) -> Sequence[str]:
        return self._plain.names()

    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        return self._plain.update(name, like)

    def update_shape(self, name: str) -> tuple[int, ...]:
        return self._plain.update_shape(name)

    @property
    def num_values(self) -> int:
        return int(np.count_nonzero(self.signs))

    def scale(self, factor: float) -> Delta:
        """Return the change times a factor, in the form that it has without the code."""
        return self._plain.scale(factor)

    def fit(self, module: nn.Module) -> Delta:
        return self._plain.fit(module)

    def write(self, folder: Path) -> None:
        code = encode(self.signs)
        note = {
            "slots": [asdict(slot) for slot in self.slots],
            "scale": self.scale_of_signs,
            **{name: getattr(code, name) for name in ("size", "num", "width", "unary_bits")},
        }
        streams = {"unary": code.unary, "remainders": code.remainders, "signs": code.signs}
        save_file(streams, folder / FILE, metadata={"ternary": json.dumps(note, separators=(",", ":"))})

    @classmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        with safe_open(folder / FILE, framework="np") as file:
            note: dict[str, Any] = json.loads(file.metadata()["ternary"])
            streams = {name: file.get_tensor(name) for name in ("unary", "remainders", "signs")}
        counts = {name: note[name] for name in ("size", "num", "width", "unary_bits")}
        slots = [replace(Slot(**slot), shape=tuple(slot["shape"])) for slot in note["slots"]]
        return cls(slots, decode(Code(**streams, **counts)), note["scale"], provenance)
