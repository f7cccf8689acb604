"""NF4: a frozen matrix in 4 bits a number, as QLoRA holds it.

Legend: B blocks, K numbers of a block, G groups of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from temper.hold.base import Hold, scaled

OFFSET = 0.9677083
"""probability mass up to the outermost quantile, by which the reference code keeps the levels finite"""
GROUP = 256
LARGEST = 127


@cache
def levels() -> tuple[float, ...]:
    """Return the 16 levels of NormalFloat: quantiles of a normal distribution, brought to [-1, 1], 0 among them."""
    upper = torch.special.ndtri(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -torch.special.ndtri(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    found = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper]).sort().values
    return tuple((found / found.max()).tolist())


class NF4(Hold, name="nf4"):
    """Hold each number of a frozen matrix as one of 16 levels q, times the largest of its block: w = c q.

    q are quantiles of a normal distribution, as weights are spread: as many numbers fall to each level. c = max |w| of
    K numbers, one after another as they are stored; of 256 such c the mean is taken off, and what is left is held in 8
    bits, c' = s k / 127 (double quantization), so that a number takes 4 + 8 / K + 64 / (256 K) bits: 4.13 for K = 64.
    The matrix is made again in the type of the products each time that it is read.

    Paper: QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314, section 3.
    Symbols: K is `block`. Deviation: c' are 8-bit integers where the paper takes 8-bit floats.
    """

    block: int = Field(64, ge=16, multiple_of=2, description="K, numbers that share a scale")
    double: bool = Field(True, description="hold the scales in 8 bits as well; false: in 32")

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        flat = weight.float().flatten()
        blocks_BK = F.pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)
        scale_B = blocks_BK.abs().amax(1)
        held = self._pack_scales(scale_B) if self.double else {"scale": scale_B}
        level = torch.tensor(levels(), device=weight.device)
        # By the scale as it will be read: no larger error is made twice.
        read_B1 = self._scales(held, len(scale_B)).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        codes_BK = torch.bucketize(blocks_BK / read_B1, (level[1:] + level[:-1]) / 2).to(torch.uint8)
        return {"codes": codes_BK[:, ::2] * 16 + codes_BK[:, 1::2], **held}

    def unpack(self, tensors: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        codes = tensors["codes"]
        level = torch.tensor(levels(), device=codes.device)
        pairs = torch.cartesian_prod(level, level)  # of each byte
        return scaled(codes, self._scales(tensors, len(codes)), pairs, shape, dtype)

    def _pack_scales(self, scale_B: Tensor) -> dict[str, Tensor]:
        # The last group is filled with its own last scale, which moves its mean to where most of it lies anyway.
        padded_B = torch.cat([scale_B, scale_B[-1:].expand(-len(scale_B) % GROUP)])
        groups = padded_B.view(-1, GROUP)
        mean_G1 = groups.mean(1, keepdim=True)
        rest = groups - mean_G1
        largest_G1 = rest.abs().amax(1, keepdim=True)
        codes = (rest / largest_G1.clamp(min=torch.finfo(torch.float32).tiny) * LARGEST).round().to(torch.int8)
        return {"scale": codes, "mean": mean_G1[:, 0], "spread": largest_G1[:, 0] / LARGEST}

    def _scales(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the scale of each block, float32 (B,)."""
        if not self.double:
            return tensors["scale"]
        groups = tensors["scale"].float() * tensors["spread"][:, None] + tensors["mean"][:, None]
        return groups.flatten()[:count].clamp(min=0)
