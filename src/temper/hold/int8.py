"""Int8: a frozen matrix in 8 bits a number, with a scale for each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from temper.hold.base import Hold, at_once, scaled

LARGEST = 127


class Int8(Hold, name="int8"):
    """Hold each number of a frozen matrix as an 8-bit integer: w = s_i q / 127, with s_i = max_j |w_ij|.

    q = round(127 w / s_i), from -127 to 127; s_i, of each row as it is stored, is float32. Every number is off by
    s_i / 254 at most, before it is rounded to the type of the products, in which the matrix is made again each time
    that it is read. What is learnt is put on the base's own numbers.

    Paper: LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, arXiv:2208.07339, section 2.
    Deviation: weights alone are 8-bit, and products are computed in bf16 or float32, so that outliers among the
    activations need no treatment of their own. A row is an output, but for families that store their matrices
    transposed (GPT-2), where it is an input.
    """

    bits: ClassVar[float] = 8

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(len(weight), device=weight.device)
        step = at_once(weight.device, weight.shape[1])
        for start in range(0, len(weight), step):
            part = slice(start, start + step)
            numbers = weight[part].float()
            scale[part] = numbers.abs().amax(1) / LARGEST
            codes[part] = (numbers / scale[part].clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        return {"codes": codes, "scale": scale}

    def unpack(self, tensors: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return scaled(tensors["codes"], tensors["scale"], None, shape, dtype)
