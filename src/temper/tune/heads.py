"""What attention heads say, changed: a vector for each head of a block, by which its output is scaled or shifted.

Legend: D model width, H heads of a block, C features of a head, I inputs of the output projection (H C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from temper.models.anatomy import Block, part_weight


class Heads:
    """One block's heads: a vector for each, by which its output is scaled at first and shifted later."""

    def __init__(self, module: nn.Module, block: Block) -> None:
        self.module, self.block = module, block
        self.part = next(part for part in block.parts if part.name == "o")
        shape = (block.num_heads, self.part.in_features // block.num_heads)
        weight = module.get_submodule(self.part.path).get_parameter("weight")
        self.vector_HC = nn.Parameter(torch.zeros(shape, device=weight.device))
        self.is_chosen_H: Tensor | None = None
        """bool: the heads that have offsets; None while all are scaled"""
        self.is_new = False
        """the vector is another since it was last asked"""

    @property
    def name(self) -> str:
        return f"{self.part.path}.{'scaling' if self.is_chosen_H is None else 'offset'}"

    def hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Change what the output projection reads: z <- (1 + A) z, then z <- z + v."""
        if self.is_chosen_H is None:
            return ((args[0] * (1 + self.vector_HC.flatten())).to(args[0].dtype), *args[1:])
        if not self.is_chosen_H.any():
            return None
        return ((args[0] + self.offset_I()).to(args[0].dtype), *args[1:])

    def offset_I(self) -> Tensor:
        """Return the offsets of all heads, 0 for those that were not chosen."""
        assert self.is_chosen_H is not None
        return torch.where(self.is_chosen_H[:, None], self.vector_HC, 0.0).flatten()

    def choose(self, is_chosen_H: Tensor) -> None:
        """Forget the scalings, and give the chosen heads offsets of 0."""
        self.is_chosen_H, self.is_new = is_chosen_H.to(self.vector_HC.device), True
        with torch.no_grad():
            self.vector_HC.zero_()

    @torch.no_grad()
    def change(self) -> tuple[str, Tensor]:
        """Return the same in numbers of the model: name and change of a parameter, float32."""
        weight_DI = part_weight(self.module, self.part).float()
        if self.is_chosen_H is not None:
            return f"{self.part.path}.bias", weight_DI @ self.offset_I()
        change_DI = weight_DI * self.vector_HC.flatten()
        return f"{self.part.path}.weight", change_DI.T if self.part.is_transposed else change_DI
