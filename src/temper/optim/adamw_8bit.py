"""AdamW with its averages in 8 bits.

Legend: N numbers, B blocks, K numbers of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from temper.optim.base import Optim, decay_groups, rearranged

Decay = Annotated[float, Field(ge=0, lt=1)]
EXPONENTS = 7
AT_ONCE = {"cpu": 2**18}
"""numbers that are stepped at once: on a CPU, what stays in its cache"""
AT_ONCE_ELSEWHERE = 2**24
AVERAGES = {"exp_avg": True, "exp_avg_sq": False}
"""the averages by name, and whether they have a sign"""


@cache
def levels(is_signed: bool) -> tuple[float, ...]:
    """Return the numbers of [-1, 1], or of (0, 1], that 8 bits stand for, rising, 0 among them.

    Seven ranges of a factor of ten each, with twice as many numbers in each as in the one below it.
    """
    found = [0.0, 1.0]
    for exponent in range(EXPONENTS):
        count = 2 ** (exponent if is_signed else exponent + 1)
        for place in range(count):
            between = 0.1 + 0.9 * (place + 0.5) / count
            found += [sign * between * 10.0 ** (exponent - EXPONENTS + 1) for sign in ((1, -1) if is_signed else (1,))]
    return tuple(sorted(found))


@cache
def _tables(is_signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the level of each code, and the code of each number in bf16 by its bits."""
    level = torch.tensor(levels(is_signed))
    bits = torch.arange(2**16, dtype=torch.int32)
    numbers = bits.to(torch.int16).view(torch.bfloat16).float().nan_to_num(0.0)
    codes = torch.bucketize(numbers, (level[1:] + level[:-1]) / 2)
    if not is_signed:  # what is not 0 stays above it: an update is divided by its root
        codes = torch.where(numbers > 0, codes.clamp(min=1), 0)
    return level.to(device), codes.to(torch.uint8).to(device)


def pack(numbers_N: Tensor, is_signed: bool, block: int) -> tuple[Tensor, Tensor]:
    """Return the codes of numbers, (N,) uint8, and the largest of each block of them, (B,) float32."""
    blocks_BK = F.pad(numbers_N, (0, -len(numbers_N) % block)).view(-1, block)
    scale_B = blocks_BK.abs().amax(1)
    within = blocks_BK / scale_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    bits = within.bfloat16().flatten().view(torch.int16).int().bitwise_and_(0xFFFF)
    return _tables(is_signed, numbers_N.device)[1].index_select(0, bits)[: len(numbers_N)], scale_B


def unpack(codes_N: Tensor, scale_B: Tensor, is_signed: bool, block: int) -> Tensor:
    """Return the numbers that codes stand for, (N,) float32."""
    level = _tables(is_signed, codes_N.device)[0]
    padded = F.pad(codes_N, (0, -len(codes_N) % block))
    return level.index_select(0, padded.int()).view(-1, block).mul_(scale_B[:, None]).flatten()[: len(codes_N)]


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
                # Zero has a code of its own, in the middle where there are signs.
                self.write(state, name, parameter.new_zeros(parameter.numel(), dtype=torch.float32))
        self.state[parameter] = state

    def read(self, state: Mapping[str, Any], name: str) -> Tensor:
        """Return an average's numbers, (N,)."""
        if f"{name}_scale" not in state:
            flat: Tensor = state[name].flatten()
            return flat
        return unpack(state[name], state[f"{name}_scale"], AVERAGES[name], self.settings.block)

    def write(self, state: dict[str, Any], name: str, numbers_N: Tensor) -> None:
        """Hold an average's numbers in 8 bits."""
        state[name], state[f"{name}_scale"] = pack(numbers_N, AVERAGES[name], self.settings.block)

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
                if f"{next(iter(AVERAGES))}_scale" in state:
                    self._step_in_parts(parameter, state, own)
                else:
                    own.take(parameter, parameter.grad, *(state[name] for name in AVERAGES))

    def _step_in_parts(self, parameter: nn.Parameter, state: dict[str, Any], own: _Step) -> None:
        block = self.settings.block
        flat_N, grad_N = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        for part, blocks in _parts(len(flat_N), block, AT_ONCE.get(parameter.device.type, AT_ONCE_ELSEWHERE)):
            averages = [
                unpack(state[name][part], state[f"{name}_scale"][blocks], is_signed, block)
                for name, is_signed in AVERAGES.items()
            ]
            own.take(flat_N[part], grad_N[part], *averages)
            for (name, is_signed), average in zip(AVERAGES.items(), averages, strict=True):
                state[name][part], state[f"{name}_scale"][blocks] = pack(average, is_signed, block)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # PyTorch brings all of a state to the parameter's type; the codes are whole numbers in it.
        for state in self.state.values():
            for name in AVERAGES:
                if f"{name}_scale" in state:
                    state[name] = state[name].to(torch.uint8)


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
    is looked up; embeddings have no norm of their own. Vectors do not decay, as is usual for transformers.
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
            if origin is None or "exp_avg_scale" not in state:
                continue
            # Its numbers lie in other places now, which codes of blocks cannot follow.
            for name in AVERAGES:
                numbers = rearranged(old.read(old.state[parameter], name).view_as(origin), origin)
                assert isinstance(numbers, Tensor)
                new.write(state, name, numbers.flatten())
