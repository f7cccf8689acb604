"""Seeded zeroth-order steps: no backward pass, and a run that a list of seeds and scalars stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from temper.core.errors import TrainingError
from temper.optim.base import Optim


class SeedOptimizer(torch.optim.Optimizer):
    """Moves all parameters along random directions that a seed stands for."""

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float, settings: Seeds) -> None:
        super().__init__([{"params": [parameter for _, parameter in parameters], "initial_lr": lr}], {"lr": lr})
        self.settings = settings
        self.last: dict[str, float] = {}
        """the last step's seed and scalar"""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is not None, "a step without gradients needs the loss as a function"
        seed = int(torch.randint(self.settings.num_seeds, ()))
        eps, done = self.settings.eps, 0.0
        try:
            losses = []
            for amount, evaluate in ((eps, partial(self._and_again, closure)), (-2 * eps, closure)):
                self._shift(seed, amount)
                done += amount
                losses.append(evaluate())
            if not math.isfinite(losses[1]):
                raise TrainingError(f"the loss is {losses[1]:g} on one side of the step; lower lr or eps")
        except TrainingError:
            self._shift(seed, -done)
            raise
        scalar = (losses[0] - losses[1]) / (2 * eps)
        self._shift(seed, eps)
        lr = self.param_groups[0]["lr"]
        self._shift(seed, -lr * scalar)
        self.last = {"seed": seed, "scalar": scalar}

    def _and_again(self, closure: Callable[[], float]) -> float:
        """Evaluate the loss, and leave the random state as it was: both sides are to drop the same.

        What dropout alone makes of the loss is many times the difference between the sides.
        """
        device = self.param_groups[0]["params"][0].device
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            return closure()

    @torch.no_grad()
    def replay(self, steps: Iterable[Mapping[str, float]]) -> None:
        """Take a run's steps again from its record alone, without model or data, to the same bits.

        Args:
            steps: `seed`, `scalar` and `lr` of each, as they stand in `metrics.jsonl`.
        """
        eps = self.settings.eps
        for step in steps:
            seed = int(step["seed"])
            # The detour over both sides is taken as well: its rounding is part of the run.
            for amount in (eps, -2 * eps, eps, -step["lr"] * step["scalar"]):
                self._shift(seed, amount)

    def _shift(self, seed: int, amount: float) -> None:
        """Add amount z(seed) to the parameters; z is made anew, one parameter at a time, and never held."""
        parameters: list[Tensor] = self.param_groups[0]["params"]
        generator = torch.Generator(parameters[0].device).manual_seed(seed)
        for parameter in parameters:
            z = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.add_(z, alpha=amount)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.last = state_dict["last"]


class Seeds(Optim, name="seeds"):
    """Step along random directions from a pool of K seeds, by the loss on both sides (zeroth order).

    z ~ N(0, I) from seed s;  g = (L(w + eps z) - L(w - eps z)) / (2 eps);  w <- w - lr g z. Two forward passes, no
    backward pass, no optimizer state. Every step is known by (s, g): the run can be replayed from these alone, and all
    steps along one seed add up to one scalar, so that K scalars say where w has gone: w = w_0 - sum_s (sum lr g)_s z_s.

    Paper: Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes
    (FedKSeed), arXiv:2312.06353.
    Symbols: K is `num_seeds`, eps is `eps`. Deviation: seeds are drawn evenly, without FedKSeed-Pro's chances; the pool
    is 0 to K - 1; the loss that is logged is that of the first side, w + eps z.
    """

    needs_gradient: ClassVar[bool] = False
    num_evaluations: ClassVar[int] = 2

    num_seeds: PositiveInt = Field(4096, description="K, seeds to draw from")
    eps: float = Field(5e-4, gt=0, description="how far to each side the loss is asked for, in units of z")

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> SeedOptimizer:
        return SeedOptimizer(parameters, lr, self)

    def report(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        assert isinstance(optimizer, SeedOptimizer)
        return optimizer.last
