"""Int8: a frozen matrix in 8 bits a number, with a scale for each row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from temper.hold.base import Hold, scaled

LARGEST = 127


class Int8(Hold, name="int8"):
    """Hold each number of a frozen matrix as an 8-bit integer: w = s_i q / 127, with s_i = max_j |w_ij|.

    q = round(127 w / s_i), from -127 to 127; s_i, of each row as it is stored, is float32. Every number is off by s_i /
    254 at most. The matrix is made again in the type of the products each time that it is read.

    Paper: LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, arXiv:2208.07339, section 2.
    Deviation: weights alone are 8-bit (vector-wise, absmax); products are computed in bf16 or float32, so that outliers
    among the activations need no treatment of their own.
    """

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        weight = weight.float()
        scale = weight.abs().amax(1)
        codes = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None] * LARGEST).round()
        return {"codes": codes.to(torch.int8), "scale": scale / LARGEST}

    def unpack(self, tensors: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return scaled(tensors["codes"], tensors["scale"], None, shape, dtype)
