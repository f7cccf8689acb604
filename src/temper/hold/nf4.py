"""NF4: a frozen matrix in 4 bits a number, as QLoRA holds it.

Legend: B blocks, K numbers of a block, G groups of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from statistics import NormalDist
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from temper.hold.base import Hold, at_once, scaled
from temper.models.eight_bits import code, decode
from temper.models.packed import constant

OFFSET = 0.9677083
"""probability mass up to the outermost quantile, by which the paper's code keeps the levels finite"""
GROUP = 256


@cache
def levels() -> tuple[float, ...]:
    """Return the 16 levels of NormalFloat: quantiles of a normal distribution, brought to [-1, 1], 0 among them."""
    quantile = NormalDist().inv_cdf
    sides = {1: 8, -1: 7}
    found = [
        side * quantile(OFFSET + (0.5 - OFFSET) * place / count)
        for side, count in sides.items()
        for place in range(count)
    ]
    return tuple(sorted([0.0, *(one / quantile(OFFSET) for one in found)]))


class NF4(Hold, name="nf4"):
    """Hold each number of a frozen matrix as one of 16 levels q, times the largest of its block: w = c q.

    q are quantiles of a normal distribution, as weights are spread: as many numbers fall to each level. c = max |w| of
    K numbers, one after another as they are stored; of 256 such c the mean is taken off, and what is left is held in 8
    bits (double quantization), so that a number takes 4 + 8 / K + 64 / (256 K) bits: 4.13 for K = 64. The matrix is
    made again in the type of the products each time that it is read. What is learnt is put on the base's own numbers.

    Paper: QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314, section 3.
    Symbols: K is `block`. Deviation: embeddings and head are held as numbers, and there are no paged optimizers; each
    group of 256 has a mean of its own, where the paper's code has one for a matrix.
    """

    bits: ClassVar[float] = 4

    block: int = Field(64, ge=16, multiple_of=2, description="K, numbers that share a scale")
    double: bool = Field(True, description="hold the scales in 8 bits as well; false: in 32")

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        flat_N = weight.flatten()
        count = -(-len(flat_N) // self.block)
        step = at_once(weight.device, self.block)
        parts = [slice(start, start + step) for start in range(0, count, step)]
        scale_B = torch.cat([self._blocks(flat_N, part).abs().amax(1) for part in parts])
        held = self._pack_scales(scale_B) if self.double else {"scale": scale_B}
        # By the scale as it will be read: no larger error is made twice.
        read_B1 = self._scales(held, count).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        level = constant(levels(), weight.device)
        between = (level[1:] + level[:-1]) / 2
        codes = torch.empty(count, self.block // 2, dtype=torch.uint8, device=weight.device)
        for part in parts:
            within = self._blocks(flat_N, part) / read_B1[part]
            codes_BK = torch.bucketize(within, between, out_int32=True).to(torch.uint8)
            codes[part] = codes_BK[:, ::2] * 16 + codes_BK[:, 1::2]
        return {"codes": codes, **held}

    def _blocks(self, flat_N: Tensor, part: slice) -> Tensor:
        """Return some blocks of numbers, float32, the last one filled with zeros."""
        numbers = flat_N[part.start * self.block : part.stop * self.block].float()
        return F.pad(numbers, (0, -len(numbers) % self.block)).view(-1, self.block)

    def unpack(self, tensors: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        codes = tensors["codes"]
        pairs = constant(tuple(one for pair in product(levels(), repeat=2) for one in pair), codes.device).view(-1, 2)
        return scaled(codes, self._scales(tensors, len(codes)), pairs, shape, dtype)

    def _pack_scales(self, scale_B: Tensor) -> dict[str, Tensor]:
        # The last group is filled with its own last scale, which moves its mean to where most of it lies anyway.
        padded_B = torch.cat([scale_B, scale_B[-1:].expand(-len(scale_B) % GROUP)])
        mean_G = padded_B.view(-1, GROUP).mean(1)
        rest = (padded_B.view(-1, GROUP) - mean_G[:, None]).flatten()
        codes, spread_G = code(rest, True, GROUP)
        return {"scale": codes, "mean": mean_G, "spread": spread_G}

    def _scales(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the scale of each block, float32 (B,)."""
        if not self.double:
            return tensors["scale"]
        rest = decode(tensors["scale"], tensors["spread"], True, GROUP).view(-1, GROUP)
        return (rest + tensors["mean"][:, None]).flatten()[:count].clamp(min=0)
