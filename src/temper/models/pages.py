"""Large tensors of a moment, outside of the C library's heap.

What is let go of in a heap leaves a hole, of which small tensors soon take a piece, so that the next large one is put
behind all others: a training grows by what it makes and lets go of. Where the library gives a large request a mapping
of its own instead, the system zeroes it page by page, at 4 KiB a time, which takes longer than to compute with it.

Here a large tensor is a mapping of large pages, which go back to the system with it; and before one is made that
does not need what others left behind, the library can be told to give that back.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LARGE_BYTES = 2**25
"""from where on: the most for which glibc grows its heap by itself"""
_CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@cache
def has_large_pages() -> bool:
    """Whether the system gives a mapping large pages that asks for them (Linux)."""
    return hasattr(mmap, "MADV_HUGEPAGE") and os.access(_CHOICE, os.R_OK) and "[never]" not in _CHOICE.read_text()


def zeros(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return zeros of a shape, on another tensor's device and, where no type is given, of its type."""
    made = _mapped(like, shape, dtype or like.dtype)
    return like.new_zeros(shape, dtype=dtype) if made is None else made


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of a shape whose numbers are to be written yet, as `zeros` does."""
    made = _mapped(like, shape, dtype or like.dtype)
    return like.new_empty(shape, dtype=dtype) if made is None else made


def is_large(like: Tensor, size: int) -> bool:
    """Whether a tensor of `size` bytes beside another is a mapping of its own."""
    return size >= LARGE_BYTES and like.device.type == "cpu" and has_large_pages()


def give_back() -> None:
    """Give the whole pages that lie free in the C library's heap back to the system (glibc)."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _mapped(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Return a tensor in large pages, None where it is not large or there are none."""
    size = math.prod(shape) * dtype.itemsize
    if isinstance(like, FakeTensor) or not is_large(like, size):
        return None
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # no memory, which PyTorch then says in its own words, or a system that refuses
        return None
    return torch.frombuffer(memory, dtype=dtype).view(shape)
