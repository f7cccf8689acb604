"""The allocator's rules, on sequences short enough to follow by hand."""

from __future__ import annotations

from temper.engine.heap import HEADER, KIB, MIB, PAGE, TOP_PAD, Heap


def kept(size: int) -> int:
    return -(-(size + HEADER) // 64) * 64


def test_small_requests_follow_one_another_and_large_ones_are_mapped() -> None:
    heap = Heap()
    heap.allocate(1, 10 * KIB)
    heap.allocate(2, 20 * KIB)
    assert heap.resident_bytes == kept(10 * KIB) + kept(20 * KIB)
    heap.allocate(3, MIB)
    assert heap.resident_bytes == kept(10 * KIB) + kept(20 * KIB) + MIB + PAGE
    heap.release(3)
    assert heap.resident_bytes == kept(10 * KIB) + kept(20 * KIB)


def test_a_chunk_is_not_found_for_its_own_size_unless_a_neighbour_is_free() -> None:
    heap = Heap()
    for key in (1, 2, 3):
        heap.allocate(key, 10 * KIB)
    heap.release(1)
    heap.allocate(4, 10 * KIB)
    assert heap.resident_bytes == 4 * kept(10 * KIB)
    heap.allocate(5, 8 * KIB)  # a smaller one is put into the hole
    assert heap.resident_bytes == 4 * kept(10 * KIB)
    heap.release(2)
    heap.release(5)
    heap.allocate(6, 20 * KIB - 64)
    assert heap.resident_bytes == 4 * kept(10 * KIB)


def test_what_was_mapped_once_raises_the_threshold() -> None:
    heap = Heap()
    heap.allocate(1, 4 * MIB)
    heap.release(1)
    heap.allocate(2, 2 * MIB)
    heap.release(2)
    # It lay in the heap, whose end is not given back before it reaches twice the threshold.
    assert heap.resident_bytes == kept(2 * MIB)
    heap.allocate(3, 40 * MIB)
    heap.release(3)
    assert heap.resident_bytes == kept(2 * MIB)


def test_the_end_of_the_heap_is_given_back() -> None:
    heap = Heap()
    for key in range(100):
        heap.allocate(key, 100 * KIB)
    for key in reversed(range(100)):
        heap.release(key)
    assert heap.resident_bytes <= TOP_PAD + 100 * KIB + PAGE
