"""AdamW with its averages in 8 bits.

Legend: N numbers, B blocks, K numbers of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from temper.models.eight_bits import code, decode, zero
from temper.optim.base import Optim, decay_groups, rearranged

Decay = Annotated[float, Field(ge=0, lt=1)]
AT_ONCE = {"cpu": 2**18}
"""numbers that are stepped at once: on a CPU, what stays in its cache"""
AT_ONCE_ELSEWHERE = 2**24
AVERAGES = {"exp_avg": True, "exp_avg_sq": False}
"""the averages by name, and whether they have a sign"""
SCALE = "_scale"
"""what follows the name of an average in that of its blocks' scales"""


class AdamW8bitOptimizer(torch.optim.Optimizer):
    """Averages of large tensors are codes with the scales of their blocks; those of small ones are numbers."""

    def __init__(self, groups: Any, settings: AdamW8bit) -> None:
        super().__init__(groups, {})
        self.settings = settings

    def start(self, parameter: nn.Parameter) -> None:
        """Make a parameter's state."""
        state: dict[str, Any] = {"step": torch.zeros(())}
        for name in AVERAGES:
            if parameter.numel() < self.settings.least:
                state[name] = torch.zeros_like(parameter)
            else:
                count, empty = parameter.numel(), zero(AVERAGES[name])
                state[name] = torch.full((count,), empty, dtype=torch.uint8, device=parameter.device)
                state[f"{name}{SCALE}"] = torch.zeros(-(-count // self.settings.block), device=parameter.device)
        self.state[parameter] = state

    def read(self, state: Mapping[str, Any], name: str) -> Tensor:
        """Return the numbers of an average that is held in 8 bits, (N,)."""
        return decode(state[name], state[f"{name}{SCALE}"], AVERAGES[name], self.settings.block)

    def write(self, state: dict[str, Any], name: str, numbers_N: Tensor) -> None:
        """Hold an average's numbers in 8 bits."""
        state[name], state[f"{name}{SCALE}"] = code(numbers_N, AVERAGES[name], self.settings.block)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter not in self.state:
                    self.start(parameter)
                state = self.state[parameter]
                state["step"] += 1
                own = _Step(self.settings, group["lr"], group["weight_decay"], int(state["step"]))
                if _is_coded(state):
                    self._step_in_parts(parameter, state, own)
                else:
                    own.take(parameter, parameter.grad, *(state[name] for name in AVERAGES))

    def _step_in_parts(self, parameter: nn.Parameter, state: dict[str, Any], own: _Step) -> None:
        block = self.settings.block
        assert parameter.grad is not None
        flat_N, grad_N = parameter.detach().reshape(-1), parameter.grad.reshape(-1)
        for part, blocks in _parts(len(flat_N), block, AT_ONCE.get(parameter.device.type, AT_ONCE_ELSEWHERE)):
            averages = [
                decode(state[name][part], state[f"{name}{SCALE}"][blocks], is_signed, block)
                for name, is_signed in AVERAGES.items()
            ]
            own.take(flat_N[part], grad_N[part], *averages)
            for (name, is_signed), average in zip(AVERAGES.items(), averages, strict=True):
                state[name][part], state[f"{name}{SCALE}"][blocks] = code(average, is_signed, block)
        if not parameter.is_contiguous():  # what was stepped is a copy, in the order of rows
            parameter.copy_(flat_N.view_as(parameter))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # PyTorch brings all of a state to the parameter's type, which would be four times the codes' memory.
        bare = {
            key: {name: value for name, value in own.items() if not _is_codes(value)}
            for key, own in _states(state_dict)
        }
        super().load_state_dict({**state_dict, "state": bare})
        numbered = [parameter for group in self.param_groups for parameter in group["params"]]
        for key, own in _states(state_dict):
            codes = {name: value.to(numbered[key].device) for name, value in own.items() if _is_codes(value)}
            self.state[numbered[key]].update(codes)


def _states(state_dict: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the number and the state of each parameter of a saved optimizer."""
    return list(state_dict["state"].items())


def _is_codes(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def _is_coded(state: Mapping[str, Any]) -> bool:
    return any(name.endswith(SCALE) for name in state)


class _Step:
    """One step of Adam, for any part of a parameter."""

    def __init__(self, settings: AdamW8bit, lr: float, decay: float, number: int) -> None:
        (self.first, self.second), self.eps, self.lr, self.decay = settings.betas, settings.eps, lr, decay
        self.size = lr / (1 - self.first**number)
        self.root = math.sqrt(1 - self.second**number)

    def take(self, numbers: Tensor, gradient: Tensor, average: Tensor, square: Tensor) -> None:
        """Change numbers and both averages in place."""
        numbers.mul_(1 - self.lr * self.decay)
        average.lerp_(gradient, 1 - self.first)
        square.mul_(self.second).addcmul_(gradient, gradient, value=1 - self.second)
        numbers.addcdiv_(average, square.sqrt().div_(self.root).add_(self.eps), value=-self.size)


def _parts(count: int, block: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of numbers, whole blocks each, and of their blocks."""
    blocks = max(1, at_once // block)
    for start in range(0, -(-count // block), blocks):
        yield slice(start * block, (start + blocks) * block), slice(start, start + blocks)


class AdamW8bit(Optim, name="adamw_8bit"):
    """AdamW whose two averages are held in 8 bits a number: a code among 256, times the largest of its block.

    m and v are made from their codes, take Adam's step in float32, and are coded again. Codes are spread like a
    floating-point number whose exponent takes as many bits as it needs (dynamic quantization): half of them lie in
    [0.1, 1] of the block's largest, half of the others in [0.01, 0.1], and so on. State: 2 bytes a number and 8 a
    block, where AdamW takes 8 a number.

    Paper: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.
    Symbols: B is `block`. Deviation: blocks of 256, as the paper's own code has them today, and not of 2,048; a v that
    is not 0 is never coded as 0, which would divide its step by eps alone; a number is rounded to bf16 before its code
    is looked up; embeddings are coded like all else, where the paper holds theirs in 32 bits and gives them a norm.
    Vectors do not decay, as is usual for transformers.
    """

    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="b1 and b2, the averages' decay rates")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="decay, a share of the weight per unit of lr and step")
    block: PositiveInt = Field(256, description="B, numbers that share a scale")
    least: PositiveInt = Field(4096, description="numbers of a tensor from which on its averages are held in 8 bits")
    example: ClassVar[Mapping[str, Any]] = {"least": 256}

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> AdamW8bitOptimizer:
        groups = decay_groups(parameters, lr, self.weight_decay)
        return AdamW8bitOptimizer([{**group, "lr": lr} for group in groups], self)

    def make_room(self, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(optimizer, AdamW8bitOptimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.start(parameter)

    def carry(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer, origins: Mapping[Tensor, Tensor]) -> None:
        assert isinstance(old, AdamW8bitOptimizer) and isinstance(new, AdamW8bitOptimizer)
        super().carry(old, new, origins)
        for parameter, state in new.state.items():
            origin = origins.get(parameter)
            if origin is None or not _is_coded(state):
                continue
            # Its numbers lie in other places now, which codes of blocks cannot follow.
            for name in AVERAGES:
                numbers = rearranged(old.read(old.state[parameter], name).view_as(origin), origin)
                assert isinstance(numbers, Tensor)
                new.write(state, name, numbers.flatten())
