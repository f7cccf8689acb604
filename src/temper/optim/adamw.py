"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from temper.optim.base import Optim, decay_groups

Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Optim, name="adamw"):
    """Adam with decoupled weight decay.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w - lr (m' / (sqrt(v') + eps) + decay w), where m' and v'
    are corrected for their start at zero.

    Paper: Decoupled Weight Decay Regularization, arXiv:1711.05101.
    Deviation: vectors (biases, norms) do not decay, as is usual for transformers.
    """

    works_on_pieces: ClassVar[bool] = True

    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="b1 and b2, the averages' decay rates")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="decay, a share of the weight per unit of lr and step")

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        groups = decay_groups(parameters, lr, self.weight_decay)
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)

    def make_room(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **averages}
