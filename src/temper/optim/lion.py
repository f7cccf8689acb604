"""Lion: steps of one size, along the sign of an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from temper.optim.base import Optim, decay_groups

Decay = Annotated[float, Field(ge=0, lt=1)]


class LionOptimizer(torch.optim.Optimizer):
    """One average for each number."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                average = state["exp_avg"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direction = average.mul(first).add_(parameter.grad, alpha=1 - first).sign_()
                parameter.add_(direction, alpha=-group["lr"])
                average.mul_(second).add_(parameter.grad, alpha=1 - second)


class Lion(Optim, name="lion"):
    """Step every number by lr, up or down, as the sign of an average of its gradients says.

    c = b1 m + (1 - b1) g;  theta = theta - lr (sign(c) + lambda theta);  m = b2 m + (1 - b2) g, with m = 0 at first.
    It holds one average, half of Adam's state. As every number moves by lr, the paper takes an lr 3 to 10 times smaller
    than AdamW's, and a lambda as many times larger.

    Paper: Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, program 1.
    Symbols: b1 and b2 are `betas`, lambda is `weight_decay`. Deviation: vectors (biases, norms) do not decay, as is
    usual for transformers.
    """

    works_on_pieces: ClassVar[bool] = True

    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.99), description="b1, how much the average counts in a step, and b2, its decay rate"
    )
    weight_decay: float = Field(0.0, ge=0, description="lambda, a share of the weight per unit of lr and step")

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> LionOptimizer:
        groups = decay_groups(parameters, lr, self.weight_decay)
        return LionOptimizer(groups, {"lr": lr, "betas": self.betas})

    def make_room(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}
