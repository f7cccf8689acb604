"""How the numbers move: the axis of optimizers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from temper.core.methods import Method, on_many_processes


class Scattered(nn.Parameter):
    """Numbers of a matrix that lie in a vector: weight decay is for them what it is for the matrix."""


def decay_groups(parameters: Sequence[tuple[str, nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Return an optimizer's groups: what decays (matrices, and numbers of matrices), and vectors, which do not."""
    members = [parameter for _, parameter in parameters]
    decaying = [member for member in members if member.ndim >= 2 or isinstance(member, Scattered)]
    among = {id(member) for member in decaying}
    others = [member for member in members if id(member) not in among]
    return [
        {"params": own, "weight_decay": rate, "initial_lr": lr}
        for own, rate in ((decaying, decay), (others, 0.0))
        if own
    ]


class Optim(Method, axis="optimizer", packages=("temper.optim",)):
    """How do the numbers move?"""

    works_on_pieces: ClassVar[bool] = False
    """Each number's step follows from its own gradient alone, so that tensors may be divided among processes. Where it
    is false, each process holds them whole."""
    needs_gradient: ClassVar[bool] = True
    """False: there is no backward pass, and `step` is given a function that evaluates the whole step's loss"""

    num_evaluations: ClassVar[int] = 1
    """how often a step asks for its loss"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        passes = () if cls.needs_gradient else ("no backward pass: it evaluates the loss of whole steps",)
        return (*super().needs(), *passes, on_many_processes(cls.works_on_pieces))

    @abstractmethod
    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        """Return an optimizer over named parameters whose groups carry `lr`.

        The engine multiplies each group's peak (`initial_lr`) with the schedule's factor before every step.
        """

    def make_room(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the state of a fresh optimizer as its first step would.

        Made within the first step it lies scattered between what that step frees again, memory of which later steps can
        use little.
        """

    def report(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Return what `metrics.jsonl` should hold of the last step besides loss, rate and norm."""
        return {}

    def remarks(self, optimizer: torch.optim.Optimizer) -> Sequence[str]:
        """Return what the report should warn of, asked after the last step: say, that nothing came of a setting."""
        return ()

    def carry(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer, origins: Mapping[Tensor, Tensor]) -> None:
        """Give a new optimizer the state of the old one, for the parameters that both hold.

        Args:
            old: over what trained so far.
            new: fresh, over what trains from now on.
            origins: for some parameters, the place in its former self that each number comes from; -1: it is new. A
                parameter of new numbers only is itself new, and has no state.
        """
        held = {parameter for group in new.param_groups for parameter in group["params"]}
        for parameter, state in old.state.items():
            origin = origins.get(parameter)
            if parameter in held and (origin is None or bool((origin >= 0).any())):
                new.state[parameter] = {
                    name: value if origin is None else rearranged(value, origin) for name, value in state.items()
                }


def rearranged(value: object, origin: Tensor) -> object:
    """Return a state of one number per place in its new order, zero where it is new; any other state as it is."""
    if not isinstance(value, Tensor) or value.shape != origin.shape:
        return value
    return torch.where(origin >= 0, value[origin.clamp(min=0)], value.new_zeros(()))
