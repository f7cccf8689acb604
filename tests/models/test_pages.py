"""Large tensors outside of the heap: what they hold, and that their memory goes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from temper.models import pages
from temper.models.pages import LARGE_BYTES, empty, give_back, zeros

NUM = LARGE_BYTES // 4
"""numbers of float32 from which on a tensor is large"""


def held() -> int:
    """Return the bytes that this process holds."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 2 * NUM // 1000])
def test_zeros_are_zeros_that_can_be_written(rows: int, dtype: torch.dtype) -> None:
    like = torch.ones(2, dtype=dtype)
    made = zeros(like, rows, 1000)
    assert made.shape == (rows, 1000) and made.dtype == dtype and made.is_contiguous() and not made.any()
    assert empty(like, rows, 1000).shape == made.shape
    made[-1] += 2
    assert float(made.double().sum()) == 2000
    assert zeros(like, 3, dtype=torch.float64).dtype == torch.float64


def test_memory_goes_with_the_tensor() -> None:
    before = held()
    made = zeros(torch.ones(1), 8, NUM)
    made += 1
    view = made[1:2]
    assert held() - before > 7 * LARGE_BYTES
    del made
    assert held() - before > 7 * LARGE_BYTES, "a view holds all of it"
    del view
    assert held() - before < LARGE_BYTES


def test_holes_in_the_heap_are_given_back() -> None:
    size, count = 100_000, 1_000  # in the heap, whose threshold for mappings is 128 KiB at least
    made = [torch.ones(size // 4) for _ in range(count)]
    full = held()
    kept = made[::10]
    del made
    give_back()
    assert full - held() > 0.6 * size * count
    assert all(float(one.sum()) == size // 4 for one in kept)


def test_without_large_pages_and_in_a_plan_torch_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode() as mode:
        like = mode.from_tensor(torch.ones(2))
        large = zeros(like, 2, NUM)
        assert {type(large), type(empty(like, 2, NUM))} == {type(like)}
    monkeypatch.setattr(pages, "has_large_pages", lambda: False)
    monkeypatch.delattr("mmap.mmap")
    assert not zeros(torch.ones(2), 2, NUM).any()
