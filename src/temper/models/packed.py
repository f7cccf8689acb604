"""A frozen matrix that is held in another form than numbers, and made again each time that it is read.

The module stays what it is. Its `weight` gives the numbers, fresh at each reading, and cannot be assigned to. A reading
tells how it was made, so that who keeps tensors for a backward pass need not keep it.

What is written into a reading is lost: who changes, saves or names a model's numbers calls `unpack_all` first. A module
that is packed can be copied, and not be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

MADE_BY = "temper_made_by"
"""the attribute in which a tensor tells how it can be made again: a function without arguments"""
HOLDER = "temper_packed"
"""the submodule of a module that holds its packed matrix"""

Unpack = Callable[[Mapping[str, Tensor], torch.Size, torch.dtype], Tensor]


class Packed(nn.Module):
    """One packed matrix.

    Args:
        tensors: what it is made again from.
        unpack: makes it: takes the tensors, its shape and the type of its numbers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], unpack: Unpack, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.unpack, self.shape, self.dtype = unpack, shape, dtype

    @torch.no_grad()
    def read(self) -> Tensor:
        """Make the matrix."""
        matrix = self.unpack(dict(self.named_buffers()), self.shape, self.dtype)
        setattr(matrix, MADE_BY, self.read)
        return matrix


class _Reads:
    """Comes before a module's own class: its weight is read from what it holds packed."""

    @property
    def weight(self) -> Tensor:
        held: Packed = getattr(self, HOLDER)
        return held.read()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(f"the weight of this {type(self).__name__} is held packed; call unpack_all first")
        super().__setattr__(name, value)


_READING: dict[type[nn.Module], type[nn.Module]] = {}
"""by a module's own class, the one whose weight is read"""


def pack(module: nn.Module, tensors: Mapping[str, Tensor], unpack: Unpack, dtype: torch.dtype) -> None:
    """Let a module hold its frozen weight packed, as the given tensors; its numbers are read in a type."""
    holder = Packed(tensors, unpack, module.get_parameter("weight").shape, dtype)
    module._parameters["weight"] = None  # which keeps its place among the parameters
    module.add_module(HOLDER, holder)
    kind = type(module)
    if kind not in _READING:
        _READING[kind] = type(f"Packed{kind.__name__}", (_Reads, kind), {})
    module.__class__ = _READING[kind]


def unpack_all(module: nn.Module) -> None:
    """Let a module and all inside hold numbers where a weight is held packed, frozen: those that were last read."""
    for inside in list(module.modules()):
        if isinstance(inside, _Reads):
            weight = inside.weight
            inside.__class__ = type(inside).__bases__[1]
            delattr(inside, HOLDER)
            inside._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a float32 table, made once for each device; real where others are tensors without content."""
    with _disable_current_modes():
        return torch.tensor(values, dtype=torch.float32, device=device)
