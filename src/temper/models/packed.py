"""A frozen matrix that is held in another form than numbers, and made again each time that it is read.

The module stays what it is. Its `weight` gives the numbers, fresh at each reading, and cannot be assigned to; what is
written into a reading is lost, so nothing may write while matrices are packed. A reading tells how it was made, so that
who keeps tensors for a backward pass need not keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

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


_READING: dict[type[nn.Module], type[nn.Module]] = {}
"""by a module's own class, the one whose weight is read"""


def pack(module: nn.Module, tensors: Mapping[str, Tensor], unpack: Unpack, dtype: torch.dtype) -> None:
    """Let a module hold its frozen weight packed, as the given tensors; its numbers are read in a type."""
    holder = Packed(tensors, unpack, module.get_parameter("weight").shape, dtype)
    del module.weight
    module.add_module(HOLDER, holder)
    kind = type(module)
    if kind not in _READING:
        _READING[kind] = type(kind.__name__, (_Reads, kind), {"__module__": kind.__module__})
    module.__class__ = _READING[kind]


def unpack_all(modules: Iterable[nn.Module]) -> None:
    """Let modules that hold a packed weight hold its numbers again, frozen: those that were last read."""
    for module in modules:
        if isinstance(module, _Reads):
            weight = module.weight
            module.__class__ = type(module).__bases__[1]
            delattr(module, HOLDER)
            module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
