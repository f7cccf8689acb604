"""A sparse ternary vector in few bits: positions as Golomb-coded gaps, one bit for each sign.

The gap g before each entry that is not 0 is written as g // 2^b in unary and g % 2^b in b bits. For entries that are
not 0 with probability p, independently, the best b and the bits that a position then takes on average are

    b = 1 + floor(log2(log(phi - 1) / log(1 - p))),    b + 1 / (1 - (1 - p)^(2^b)),    phi = (sqrt(5) + 1) / 2

Papers: Run-length encodings (Golomb, IEEE Transactions on Information Theory 12, 1966); Robust and
Communication-Efficient Federated Learning from Non-IID Data, arXiv:1903.02891, section V.

Unary parts, remainders and signs are streams of their own, so that both directions are a few array operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ternary = NDArray[np.int8]
"""-1, 0 and 1"""


@dataclass(frozen=True)
class Code:
    """A coded vector."""

    unary: Bytes
    remainders: Bytes
    signs: Bytes
    size: int
    """entries of the vector"""
    num: int
    """of them not 0"""
    width: int
    """b: bits of a remainder"""
    unary_bits: int
    """of the unary stream, before it was filled up to whole bytes"""

    @property
    def num_bits(self) -> int:
        """Bits that positions and signs take."""
        return self.unary_bits + self.num * (self.width + 1)


def best_width(density: float) -> int:
    """Return b for entries of which this share is not 0."""
    if not 0 < density < 1:
        return 0
    golden = (math.sqrt(5) + 1) / 2
    return max(0, 1 + math.floor(math.log2(math.log(golden - 1) / math.log1p(-density))))


def entropy_bits(density: float) -> float:
    """Return the bits for each entry of the vector, zeros included, below which no code can come."""
    if density in (0.0, 1.0):
        return density
    return -(1 - density) * math.log2(1 - density) - density * math.log2(density / 2)


def encode(values: Ternary) -> Code:
    """Code a vector of -1, 0 and 1."""
    positions = np.flatnonzero(values)
    width = best_width(len(positions) / max(1, len(values)))
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum((gaps >> width) + 1) - 1
    unary_bits = int(ends[-1]) + 1 if len(ends) else 0
    unary = np.ones(unary_bits, np.uint8)
    unary[ends] = 0
    remainders = (gaps[:, None] >> np.arange(width)) & 1
    return Code(
        unary=np.packbits(unary),
        remainders=np.packbits(remainders.astype(np.uint8)),
        signs=np.packbits(values[positions] > 0),
        size=len(values),
        num=len(positions),
        width=width,
        unary_bits=unary_bits,
    )


def decode(code: Code) -> Ternary:
    """Return the vector that was coded."""
    ends = np.flatnonzero(np.unpackbits(code.unary, count=code.unary_bits) == 0)
    quotients = np.diff(ends, prepend=-1) - 1
    bits = np.unpackbits(code.remainders, count=code.num * code.width).reshape(code.num, code.width)
    gaps = (quotients << code.width) + (bits.astype(np.int64) << np.arange(code.width)).sum(1)
    values = np.zeros(code.size, np.int8)
    values[np.cumsum(gaps + 1) - 1] = 2 * np.unpackbits(code.signs, count=code.num).astype(np.int8) - 1
    return values
