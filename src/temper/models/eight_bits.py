"""Numbers in 8 bits: a code among 256, times the largest of its block.

The codes are spread like a floating-point number whose exponent takes as many bits as it needs (dynamic quantization):
of each factor of ten below the largest there are half as many as of the one above it.

Paper: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.

Legend: N numbers, B blocks, K numbers of a block.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from temper.models.packed import constant

EXPONENTS = 7


@cache
def levels(is_signed: bool) -> tuple[float, ...]:
    """Return the numbers of [-1, 1], or of [0, 1], that codes stand for, rising, 0 and 1 among them."""
    found = [0.0, 1.0]
    for exponent in range(EXPONENTS):
        count = 2 ** (exponent if is_signed else exponent + 1)
        for place in range(count):
            between = 0.1 + 0.9 * (place + 0.5) / count
            found += [sign * between * 10.0 ** (exponent - EXPONENTS + 1) for sign in ((1, -1) if is_signed else (1,))]
    return tuple(sorted(found))


def zero(is_signed: bool) -> int:
    """Return the code of 0."""
    return levels(is_signed).index(0.0)


@cache
def _codes(levels: tuple[float, ...], is_signed: bool, device: torch.device) -> Tensor:
    """Return the code of each number in bf16, by its bits; without a sign, what is not 0 stays above it."""
    with _disable_current_modes():
        level = torch.tensor(levels)
        numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float().nan_to_num(0.0)
        codes = torch.bucketize(numbers, (level[1:] + level[:-1]) / 2)
        if not is_signed:
            codes = torch.where(numbers > 0, codes.clamp(min=1), 0)
        return codes.to(torch.uint8).to(device)


def code(numbers_N: Tensor, is_signed: bool, block: int) -> tuple[Tensor, Tensor]:
    """Return numbers' codes, (N,) uint8, and the largest of each block, (B,) float32.

    A number is rounded to bf16 on its way to the nearest level.

    Args:
        is_signed: false where none is below 0: a number above 0 is then never coded as 0.
        block: K.
    """
    block = min(block, len(numbers_N))
    blocks_BK = F.pad(numbers_N, (0, -len(numbers_N) % block)).view(-1, block)
    scale_B = blocks_BK.abs().amax(1)
    within = blocks_BK / scale_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    bits = within.bfloat16().flatten().view(torch.int16).int().bitwise_and_(0xFFFF)
    found = _codes(levels(is_signed), is_signed, numbers_N.device).index_select(0, bits)
    return found[: len(numbers_N)], scale_B


def decode(codes_N: Tensor, scale_B: Tensor, is_signed: bool, block: int) -> Tensor:
    """Return the numbers that codes stand for, (N,) float32."""
    block = min(block, len(codes_N))
    padded = F.pad(codes_N, (0, -len(codes_N) % block)).int()
    level = constant(levels(is_signed), codes_N.device)
    return level.index_select(0, padded).view(-1, block).mul_(scale_B[:, None]).flatten()[: len(codes_N)]
