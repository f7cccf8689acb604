"""GaLore: any optimizer, on gradients projected to a few dimensions.

Legend: M rows, N columns of a weight, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.optim.base import Optim


class GaLoreOptimizer(torch.optim.Optimizer):
    """An inner optimizer over small stand-ins for the projected matrices, and over all else as it is."""

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float, settings: GaLore) -> None:
        self.settings, self.num_steps = settings, 0
        self.stand_ins: dict[nn.Parameter, nn.Parameter] = {}
        """of each projected matrix, the (R, N) or (M, R) numbers that the inner optimizer moves; empty between steps"""
        for _, parameter in parameters:
            if parameter.ndim == 2 and min(parameter.shape) > settings.rank:
                self.stand_ins[parameter] = nn.Parameter(parameter.new_empty(_projected(parameter, settings.rank)))
        # The inner optimizer sees how large what it will move is; between steps nothing of it is held.
        self.inner = settings.inner.build([(name, self.stand_ins.get(p, p)) for name, p in parameters], lr)
        for small in self.stand_ins.values():
            small.data = small.new_empty(0, 0)
        real: dict[Tensor, nn.Parameter] = {small: parameter for parameter, small in self.stand_ins.items()}
        groups = [
            {**group, "params": [real.get(member, member) for member in group["params"]]}
            for group in self.inner.param_groups
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner["lr"] = group["lr"]
        for parameter, small in self.stand_ins.items():
            if parameter.grad is not None:
                projected = self._project(parameter, parameter.grad)
                small.data, small.grad = torch.zeros_like(projected), projected
        self.inner.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self.stand_ins or self.stand_ins[parameter].grad is None:
                    continue
                small = self.stand_ins[parameter]
                # The stand-in was 0, so that the inner optimizer's own decay did nothing.
                parameter.mul_(1 - group["lr"] * group.get("weight_decay", 0.0))
                basis = self.state[parameter]["basis"]
                update = basis @ small if _is_wide(parameter) else small @ basis
                parameter.add_(update, alpha=self.settings.scale)
                small.data, small.grad = parameter.new_empty(0, 0), None
        self.num_steps += 1

    def _project(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Return P^T G of a wide matrix, G Q of a tall one; the basis is taken anew every T steps."""
        state = self.state[parameter]
        age = self.num_steps - state.get("since", 0)
        if "basis" not in state or age >= self.settings.every_steps:
            left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
            rank = self.settings.rank
            state["basis"] = (left[:, :rank] if _is_wide(parameter) else right[:rank]).contiguous()
            state["since"] = self.num_steps
        basis: Tensor = state["basis"]
        return basis.T @ gradient if _is_wide(parameter) else gradient @ basis.T

    def rename(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Give another parameter the inner optimizer's state of one, and where that projects too, its stand-in."""
        if old in self.inner.state:
            self.inner.state[new] = self.inner.state.pop(old)
        if isinstance(self.inner, GaLoreOptimizer) and old in self.inner.stand_ins:
            self.inner.stand_ins[new] = self.inner.stand_ins.pop(old)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.inner.load_state_dict(state_dict["inner"])
        self.num_steps = state_dict["num_steps"]


class GaLore(Optim, name="galore"):
    """Project each matrix's gradient to rank r, let any optimizer move there, and project its step back.

    R = P^T G (G m x n, m <= n; else R = G Q);  W <- W + alpha P update(R), where P is the first r left singular vectors
    of G, taken anew every T steps. The inner optimizer's averages are r x n, and stay as they are when P changes.

    Paper: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507.
    Symbols: r is `rank`, T is `every_steps`, alpha is `scale`, the optimizer is `inner`. Vectors and matrices with a
    side of r or less are moved by the inner optimizer as they are. Deviation: embeddings are projected, too; the decay
    that an inner optimizer's groups name is taken off the whole weight, W <- (1 - lr decay) W.
    """

    inner: Optim = Field(default_factory=lambda: Optim.parse("adamw"), description="what moves the projected numbers")
    rank: PositiveInt = Field(128, description="r, dimensions that a gradient is projected to")
    every_steps: PositiveInt = Field(200, description="T, optimizer steps between projections")
    scale: float = Field(0.25, gt=0, description="alpha, what the projected step is multiplied with")

    @model_validator(mode="after")
    def _there_is_a_gradient(self) -> Self:
        if not self.inner.needs_gradient:
            fix = "take an inner optimizer that does, such as adamw"
            raise SettingError("inner", self.inner.method_name, "takes no gradient, so that none is projected", fix)
        return self

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> GaLoreOptimizer:
        return GaLoreOptimizer(parameters, lr, self)

    def remarks(self, optimizer: torch.optim.Optimizer) -> Sequence[str]:
        assert isinstance(optimizer, GaLoreOptimizer)
        of_inner = self.inner.remarks(optimizer.inner)
        if optimizer.stand_ins:
            return of_inner
        return (
            f"optimizer.galore: projected nothing, as all that trains are vectors and matrices with a side of at most "
            f"{self.rank} numbers (`rank`): this was plain {self.inner.method_name}; lower rank, or leave galore out",
            *of_inner,
        )

    def carry(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer, origins: Mapping[Tensor, Tensor]) -> None:
        assert isinstance(old, GaLoreOptimizer) and isinstance(new, GaLoreOptimizer)
        super().carry(old, new, origins)
        new.num_steps = old.num_steps
        # A matrix that stays has a new stand-in, which takes on the old one's state.
        for parameter, small in new.stand_ins.items():
            if parameter in old.stand_ins:
                old.rename(old.stand_ins[parameter], small)
        self.inner.carry(old.inner, new.inner, origins)


def _projected(parameter: Tensor, rank: int) -> tuple[int, int]:
    """Return the shape of a matrix's projected gradient."""
    rows, columns = parameter.shape
    return (rank, columns) if _is_wide(parameter) else (rows, rank)


def _is_wide(parameter: Tensor) -> bool:
    return parameter.shape[0] <= parameter.shape[1]
