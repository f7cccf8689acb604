"""The code against Golomb's, bit by bit, and its length against the formula and the entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltas import expected_bits
from temper.delta.golomb import best_width, decode, encode, entropy_bits


def draw(size: int, density: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    signs = np.where(generator.random(size) < 0.5, -1, 1)
    return np.where(generator.random(size) < density, signs, 0).astype(np.int8)


def naive_bits(values: np.ndarray) -> int:
    """Write the code as text, one entry after the other, and count."""
    width = best_width(np.count_nonzero(values) / max(1, len(values)))
    written, gap = "", 0
    for value in values:
        if value == 0:
            gap += 1
        else:
            remainder = format(gap % 2**width, f"0{width}b") if width else ""
            written += "1" * (gap // 2**width) + "0" + remainder + ("1" if value > 0 else "0")
            gap = 0
    return len(written)


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 0, 1]), max_size=300))
def test_decoded_is_what_was_coded(entries: list[int]) -> None:
    values = np.array(entries, np.int8)
    code = encode(values)
    assert np.array_equal(decode(code), values)
    assert code.num_bits == naive_bits(values)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0])
def test_its_length_is_the_papers(density: float) -> None:
    values = draw(200_000, density)
    code = encode(values)
    assert np.array_equal(decode(code), values)
    share = code.num / code.size
    # A geometric gap varies by about its mean: the mean of n of them is within 5 / sqrt(n) of it.
    slack = 5 / math.sqrt(code.num)
    assert code.num_bits / code.num == pytest.approx(expected_bits(share), rel=slack)
    at_best = entropy_bits(share) * code.size
    assert code.num_bits >= at_best * (1 - slack)
    if density <= 0.5:
        assert code.num_bits <= at_best * 1.1 + 8, "gaps suit sparse vectors: at most a tenth above the entropy"
    stored = len(code.unary) + len(code.remainders) + len(code.signs)
    assert 0 <= stored - code.num_bits / 8 < 3, "three streams, each filled up to a byte"


def test_the_width_is_the_best_one() -> None:
    for density in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3):

        def bits(width: int, density: float = density) -> float:
            return width + 1 / (1 - (1 - density) ** (2**width))

        assert bits(best_width(density)) == min(bits(width) for width in range(14))


def test_the_entropy_is_the_papers_at_a_twentieth() -> None:
    # -(0.95 log2 0.95 + 0.05 log2 0.025) = 0.3364 bits for each entry.
    assert entropy_bits(0.05) == pytest.approx(0.336397, abs=1e-6)
    assert 16 / (expected_bits(0.05) * 0.05) > 40, "some forty times fewer than 16 bits"


@pytest.mark.parametrize("values", [[], [0, 0, 0], [1], [-1], [0, 0, 1], [-1, 0, 0]])
def test_short_ones(values: list[int]) -> None:
    assert decode(encode(np.array(values, np.int8))).tolist() == values
