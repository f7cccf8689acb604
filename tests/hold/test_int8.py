"""Int8 against its formula."""

from __future__ import annotations

import pytest
import torch

from temper.hold.int8 import Int8


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 48)])
def test_every_number_is_rounded_to_its_rows_steps(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = Int8().unpack(Int8().pack(weight), weight.shape, torch.float32)
    for row, own in zip(weight.tolist(), made.tolist(), strict=True):
        step = max(map(abs, row)) / 127
        expected = [step * round(one / step) for one in row]
        torch.testing.assert_close(torch.tensor(own), torch.tensor(expected), rtol=1e-6, atol=1e-7)
        assert max(abs(one - other) for one, other in zip(row, own, strict=True)) <= step / 2 * (1 + 1e-5)


def test_a_number_takes_eight_bits_and_a_row_32() -> None:
    held = Int8().pack(torch.randn(10, 100))
    assert sum(one.numel() * one.element_size() for one in held.values()) == 10 * 100 + 10 * 4


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.zeros(3, 8)
    weight[1] = torch.randn(8)
    made = Int8().unpack(Int8().pack(weight), weight.shape, torch.float32)
    assert torch.equal(made[0], weight[0]) and torch.equal(made[2], weight[2]) and made[1].any()
