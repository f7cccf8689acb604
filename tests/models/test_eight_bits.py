"""Numbers in 8 bits against the formula written naively."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from temper.models.eight_bits import code, decode, levels, zero


def naive(numbers: Sequence[float], block: int, is_signed: bool) -> list[float]:
    """What numbers are after they were held in 8 bits."""
    found = []
    for start in range(0, len(numbers), block):
        part = numbers[start : start + block]
        scale = max(map(abs, part))
        for one in part:
            within = float(torch.tensor(one / scale if scale else 0.0).bfloat16())
            some = [level for level in levels(is_signed) if is_signed or within == 0 or level > 0]
            found.append(scale * min(some, key=lambda level, within=within: abs(level - within)))
    return found


def test_levels_are_those_of_the_papers_code() -> None:
    """Of each range of a factor of ten twice as many as of the one below it, in the middles of equal steps."""
    signed, unsigned = levels(True), levels(False)
    assert len(set(signed)) == len(set(unsigned)) == 256
    assert unsigned[0] == 0 and unsigned[-1] == signed[-1] == 1
    assert sorted(-level for level in signed if level < 0) == sorted(one for one in signed if 0 < one < 1)
    for found, most in ((signed, 64), (unsigned, 128)):
        for exponent in range(7):
            within = [one for one in found if 10.0 ** (exponent - 7) < one < 10.0 ** (exponent - 6)]
            assert len(within) == most // 2 ** (6 - exponent)
    assert signed[-2] == pytest.approx(0.1 + 0.9 * 63.5 / 64) and unsigned[1] == pytest.approx(3.25e-7)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("count", [1, 5, 16, 77])
def test_every_number_goes_to_the_nearest_level_of_its_block(is_signed: bool, count: int) -> None:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(count)) ** 5
    numbers[count // 2] = 0
    numbers = numbers if is_signed else numbers.abs()
    codes, scales = code(numbers, is_signed, 16)
    assert codes.dtype == torch.uint8 and len(codes) == count and len(scales) == -(-count // 16)
    found = decode(codes, scales, is_signed, 16)
    torch.testing.assert_close(found, torch.tensor(naive(numbers.tolist(), 16, is_signed)), rtol=1e-6, atol=0)


def test_what_is_not_zero_is_never_coded_as_zero_without_a_sign() -> None:
    numbers = torch.tensor([1.0, 1e-12, 0.0])
    found = decode(*code(numbers, False, 4), False, 4)
    assert found[1] == pytest.approx(levels(False)[1]) and found[2] == 0
    assert decode(*code(numbers, True, 4), True, 4)[1] == 0, "with a sign it is the nearest, which is 0"


def test_zero_has_a_code_of_its_own() -> None:
    for is_signed in (True, False):
        codes, scales = code(torch.zeros(5), is_signed, 4)
        assert codes.tolist() == [zero(is_signed)] * 5 and not decode(codes, scales, is_signed, 4).any()


def test_a_block_larger_than_all_numbers_is_no_larger_than_they_are() -> None:
    numbers = torch.randn(77)
    found = [decode(*code(numbers, True, block), True, block) for block in (77, 2**40)]
    assert torch.equal(*found)
