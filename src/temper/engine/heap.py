"""What the C library's allocator holds for the tensors of a program: their bytes, and the holes between them.

glibc serves a request from the smallest free chunk that fits, else from the end of its heap, else from the system:
as a mapping of its own where the request reaches a threshold, which rises to the size of whatever mapping is let go
of (up to 32 MiB). PyTorch asks for multiples of 64 bytes, for which glibc looks for 96 bytes more than it keeps: so a
chunk that was let go of is never found for a tensor of the same size unless a neighbour is free as well. That is one
reason why a training process holds more than its tensors.

Real heaps hold more than this one: measured peaks lie up to 37 % above what is predicted (`docs/plan.md`). Small
objects that lie between tensors and keep free neighbours apart are not followed here, which may be why.

Sizes and rules are those of glibc 2.36's `malloc.c` for one thread. Chunks below a page are left out.
"""

from __future__ import annotations

import os
import platform
from bisect import bisect_left, insort
from pathlib import Path

KIB, MIB = 2**10, 2**20
HEADER, ALIGNMENT, ROUNDING = 16, 64, 96
FIRST_THRESHOLD, HIGHEST_THRESHOLD, TOP_PAD = 128 * KIB, 32 * MIB, 128 * KIB
LEAST_TO_TRIM = 64 * KIB
PAGE = 4096


class Heap:
    """The allocator of a process, replayed: `allocate` and `release` by a key of the caller's."""

    def __init__(self) -> None:
        self.threshold, self.trim_threshold = FIRST_THRESHOLD, FIRST_THRESHOLD
        self._free: list[tuple[int, int]] = []
        """free chunks as (size, start), sorted"""
        self._size_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}
        """free chunks by their start, and by their end"""
        self._top = self._end = self._touched = self._mapped = 0
        self._used: dict[int, tuple[int | None, int]] = {}

    @property
    def resident_bytes(self) -> int:
        """What the process holds of the system's memory."""
        return self._touched + self._mapped

    def allocate(self, key: int, size: int) -> None:
        """Take a chunk for `size` bytes, all of which are written to."""
        kept = -(-(size + HEADER) // ALIGNMENT) * ALIGNMENT
        wanted = kept + ROUNDING
        place = bisect_left(self._free, (wanted, -1))
        if place < len(self._free):
            found, start = self._free[place]
            self._take(start)
            if found > kept:
                self._give(start + kept, found - kept)
        elif self._end - self._top < wanted + HEADER * 2 and wanted >= self.threshold:
            kept = -(-(kept + HEADER) // PAGE) * PAGE
            self._used[key] = (None, kept)
            self._mapped += kept
            return
        else:
            if self._end - self._top < wanted + HEADER * 2:
                self._end = -(-(self._top + wanted + TOP_PAD) // PAGE) * PAGE
            start = self._top
            self._top += kept
            self._touched = max(self._touched, self._top)
        self._used[key] = (start, kept)

    def release(self, key: int) -> None:
        """Let a chunk go."""
        start, size = self._used.pop(key)
        if start is None:
            self._mapped -= size
            if self.threshold < size <= HIGHEST_THRESHOLD:
                self.threshold, self.trim_threshold = size, 2 * size
            return
        if start in self._start_before:
            before = self._start_before[start]
            size += self._take(before)
            start = before
        if start + size in self._size_at:
            size += self._take(start + size)
        if start + size == self._top:
            self._top = start
        else:
            self._give(start, size)
        if size >= LEAST_TO_TRIM and self._end - self._top >= self.trim_threshold:
            self._end = -(-(self._top + TOP_PAD) // PAGE) * PAGE
            self._touched = min(self._touched, self._end)

    def _give(self, start: int, size: int) -> None:
        insort(self._free, (size, start))
        self._size_at[start] = size
        self._start_before[start + size] = start

    def _take(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        del self._free[bisect_left(self._free, (size, start))]
        return size


def is_modelled() -> bool:
    """Whether this process uses the allocator that is described here, with the settings that it comes with."""
    if platform.libc_ver()[0] != "glibc":
        return False
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return not is_set and not any(name in maps for name in ("jemalloc", "tcmalloc", "mimalloc"))
