"""What the allocator is said to hold, against the allocator of a process that makes real tensors."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from temper.engine.heap import DRAWS, held_bytes

KIB, MIB = 2**10, 2**20
PROCESSES = 6

REAL = """
import ctypes, json, os, sys
import torch
from temper.engine.heap import LARGEST_IN_HEAP

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "top")]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
def run(events, sizes):
    made, most = [None] * len(sizes), 0
    first = library.mallinfo2()
    for event in events:
        number = abs(event) - 1
        made[number] = torch.empty(sizes[number], dtype=torch.uint8) if event > 0 else None
        now = library.mallinfo2()
        most = max(most, now.arena + now.hblkhd - first.arena - first.hblkhd)
    return most

torch.empty(LARGEST_IN_HEAP, dtype=torch.uint8)
library.malloc_trim(0)
for events, sizes in json.load(sys.stdin):  # each in a heap as it is now
    if os.fork() == 0:
        os.write(1, b"%d\\n" % run(events, sizes))
        os._exit(0)
    os.wait()
"""


def passes(seed: int, blocks: int = 6) -> tuple[list[int], list[int]]:
    """Forward and backward passes: what is kept goes in reverse, beside short-lived tensors of the same sizes."""
    drawn = random.Random(seed)
    events: list[int] = []
    sizes: list[int] = []

    def come(size: int) -> int:
        sizes.append(size)
        events.append(len(sizes))
        return len(sizes)

    for _ in range(8):
        rows = drawn.randrange(500, 1000)
        kept: list[int] = []
        for width in (512, 512, 1536, 512, 1536) * blocks:
            passing = [come(rows * width), come(rows * width)]
            kept.append(come(rows * width))
            events += [-number for number in passing]
            kept.append(come(4 * rows))
        gradient = come(rows * 512)
        for number in reversed(kept):
            size = sizes[number - 1]
            following, passing_on = come(size), come(size)
            events += [-gradient, -number, -passing_on]
            gradient = following
        events.append(-gradient)
    return events, sizes


def most_alive(events: list[int], sizes: list[int]) -> int:
    alive = most = 0
    for event in events:
        alive += sizes[abs(event) - 1] * (1 if event > 0 else -1)
        most = max(most, alive)
    return most


def test_a_real_process_holds_what_is_said_and_more_than_its_tensors() -> None:
    several = [passes(seed) for seed in range(4)]
    said = [max(held_bytes(*one) or [0]) for one in several]
    alive = [most_alive(*one) for one in several]
    command = [sys.executable, "-c", REAL]
    # A process is one draw of the orders of which the mean is said: such sums lie between 130 and 180 MiB.
    real = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, input=json.dumps(several), capture_output=True, text=True, check=True)
        real.append(sum(int(line) for line in done.stdout.split()))
    assert sum(said) == pytest.approx(sum(real) / PROCESSES, rel=0.15)
    assert sum(alive) < 0.8 * sum(real) / PROCESSES  # the tensors alone would not explain it


def test_what_is_larger_than_the_threshold_is_a_mapping_of_its_own() -> None:
    held = held_bytes([1, -1], [40 * MIB])
    assert held is not None
    assert 40 * MIB <= held[0] <= 40 * MIB + 200 * KIB
    assert held[1] <= 200 * KIB


def test_settings_of_the_allocator_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    events, sizes = passes(0)
    alive = most_alive(events, sizes)
    as_it_comes = held_bytes(events, sizes)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(64 * KIB))
    exact = held_bytes(events, sizes)
    assert as_it_comes is not None and exact is not None
    assert alive <= max(exact) <= 1.05 * alive < 0.8 * max(as_it_comes)


def test_the_same_is_said_twice() -> None:
    events, sizes = passes(0)
    assert held_bytes(events, sizes) == held_bytes(events, sizes)
    assert DRAWS > 1


def test_holes_that_are_given_back_are_not_held_until_they_are_filled_again() -> None:
    """Eight tensors, of which every second goes."""
    sizes = [MIB] * 12
    going = [-1, -3, -5, -7]
    kept = held_bytes([*range(1, 9), *going, 9, 10, 11, 12], sizes)
    given = held_bytes([*range(1, 9), *going, 0, 9, 10, 11, 12], sizes)
    assert kept is not None and given is not None
    assert given[:12] == kept[:12] and kept[11] >= 8 * MIB
    assert [one / MIB for one in given[12:]] == pytest.approx([4, 5, 6, 7, 8], abs=0.1)


def test_what_no_system_gives_is_not_found_out() -> None:
    assert held_bytes([1], [2**62]) is None


def test_what_has_no_numbers_takes_up_its_own_chunk() -> None:
    half = 100_000
    held = held_bytes([*range(1, 2 * half + 1)], [-100] * (2 * half))
    assert held is not None
    assert held[-1] - held[half] == pytest.approx(112 * half, rel=0.1)  # the chunk adds 8 and is a multiple of 16
