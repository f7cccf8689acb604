"""What the C library's allocator holds for the tensors of a program: their bytes, and the holes between them.

glibc gives a request the smallest free chunk that fits, else the end of its heap; what is let go of becomes one chunk
with its free neighbours. PyTorch asks for tensors that begin at a multiple of 64 bytes, for which glibc before 2.38
looks for 96 bytes more than it keeps. The two ends that are left over are soon taken by small objects, so that a chunk
that was let go of seldom serves a tensor of its own size again, and a training process holds more than its tensors.

How much more hangs on every request and its order. So no rule of the library is told again here: the requests are made
in a process of their own, of the library that this process uses and with its settings, and that process says where its
heap ends. What it is given is never written to, so it takes up addresses and no memory. With each tensor's numbers come
the small objects that PyTorch makes for it, and between them those of views and of autograd's graph. The same requests
with two of these the other way round end in heaps that differ by a tenth or more, and so do two trainings: several such
orders are drawn, and their mean is what is returned.

This file is run as a script: it imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

ALIGNMENT = 64
STORAGE, TENSOR, VERSION = 96, 176, 24
"""bytes of PyTorch's objects for a tensor: the storage's, made before its numbers, the tensor's and its version's, made
after them (as PyTorch 2.13 asks for them)"""
VIEW, EDGES = TENSOR, 24
"""of a tensor on another's numbers, and of what a node of autograd's graph lists its inputs in"""
IS_MAPPED, HEADER, PAGE = 2, 16, 4096
LARGEST_IN_HEAP = 32 * 2**20 - 2 * PAGE
"""glibc raises its threshold for mappings to the size of what is let go of, to this at most"""
DRAWS = 8


def is_modelled() -> bool:
    """Whether this process uses glibc's allocator."""
    if platform.libc_ver()[0] != "glibc":
        return False
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return not any(name in maps for name in ("jemalloc", "tcmalloc", "mimalloc"))


def held_bytes(events: Sequence[int], sizes: Sequence[int]) -> list[int] | None:
    """Return what a process holds for tensors after each event, None where that cannot be found out.

    Args:
        events: number + 1 of what comes, its negative where it goes; 0 where what lies free is given back.
        sizes: of each tensor, in bytes; a negative one is that of an object which has no numbers.
    """
    if not is_modelled():
        return None
    written = array("q", [len(sizes), *sizes, *filter(None, events)]).tobytes()
    drawn: list[array[int]] = []
    for seed in range(DRAWS):
        command = [sys.executable, "-S", "-s", "-P", __file__, str(seed)]
        # Strings get the same hashes in every such process, and so its heap begins in the same order.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, input=written, capture_output=True, env=environment, check=False)
        if done.returncode != 0:  # such as where the system refuses so many addresses
            return None
        drawn.append(array("q", done.stdout))
    return _given_back([sum(held) // DRAWS for held in zip(*drawn, strict=True)], events, sizes)


def _given_back(held: Sequence[int], events: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return what is held where no more is in the heap than tensors have filled since it gave back what lay free.

    Args:
        held: where nothing is given back, after each event but those.
    """
    found: list[int] = []
    rest, alive, most = iter(held), 0, None
    for event in events:
        if event == 0:
            most = alive
        else:
            size = max(0, sizes[abs(event) - 1])
            alive += size if event > 0 else -size
            most = None if most is None else max(most, alive)
        last = next(rest) if event else found[-1] if found else 0
        found.append(last if most is None else min(last, most))
    return found


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    for name, arguments in (("malloc", 1), ("memalign", 2), ("sbrk", 1), ("free", 1)):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_size_t] * arguments, ctypes.c_size_t
    library.free.restype = None
    return library


def _replay(events: Sequence[int], sizes: Sequence[int], seed: int) -> array[int]:
    """Make the requests, and return what is held after each event."""
    library, order = _library(), random.Random(seed)
    malloc, memalign, free, heap_end = library.malloc, library.memalign, library.free, library.sbrk
    made: list[tuple[int, ...]] = [()] * len(sizes)
    held = array("q", bytes(8 * len(events)))
    free(malloc(LARGEST_IN_HEAP))  # a process that has loaded a model has had and let go of what is as large
    begin, mapped = heap_end(0), 0
    for place, event in enumerate(events):
        number = abs(event) - 1
        size = max(1, sizes[number])
        if sizes[number] < 0:
            if event > 0:
                made[number] = (malloc(-sizes[number]),)
            else:
                free(made[number][0])
        elif event > 0:
            storage, numbers = malloc(STORAGE), memalign(ALIGNMENT, size)
            if not numbers:
                raise MemoryError(size)
            small = {wanted: malloc(wanted) for wanted in order.sample((TENSOR, VERSION), 2)}
            made[number] = small[VERSION], numbers, storage, small[TENSOR]  # as they go
            mapped += _mapped_bytes(numbers, size)
        else:
            mapped -= _mapped_bytes(made[number][1], size)
            for address in made[number]:
                free(address)
        held[place] = heap_end(0) - begin + mapped
    return held


def _mapped_bytes(address: int, size: int) -> int:
    """Return the bytes of a mapping of its own, 0 where a chunk lies in the heap: glibc notes it before the chunk."""
    is_mapped = ctypes.c_size_t.from_address(address - 8).value & IS_MAPPED
    return -(-(size + HEADER) // PAGE) * PAGE if is_mapped else 0


def _main() -> None:
    numbers = array("q")
    numbers.frombytes(sys.stdin.buffer.read())
    count = numbers[0]
    sys.stdout.buffer.write(_replay(numbers[1 + count :], numbers[1 : 1 + count], int(sys.argv[1])).tobytes())


if __name__ == "__main__":
    _main()
