"""Where the numbers that train lie on the processes of a world, and what follows from that for a step.

Two ways: whole on each process (`Replicated`, right for whatever trains), or divided among them (`Sharded`, for a
tuner that trains the model's own parameters). With one process the first does nothing at all.

Decisions:
- A step's examples are those that one process would take; each process computes a share of them, by tokens, since
  the heaviest share decides the time. The loss is divided by the units of all, so gradients are added up.
- Replicas add up their gradients once a step, in few large pieces, and are compared at every checkpoint.
- A process that has no pass left while others have takes part with one that does not count: dividing a model means
  that every pass is everybody's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from temper.core.errors import SettingError, TrainingError
from temper.data.example import Example
from temper.data.pack import divide_by_cost, split_by_cost
from temper.engine.distributed import World
from temper.engine.layout import KEY, num_pieces, own, shard, whole
from temper.models.model import Model
from temper.objectives.base import Loss

BUCKET_VALUES = 2**24
"""Gradients that are added up in one call: 64 MiB."""

Named = Sequence[tuple[str, nn.Parameter]]
Item = TypeVar("Item")


@dataclass
class Replicated:
    """Everything lies whole on every process."""

    world: World
    is_whole: ClassVar[bool] = True

    def divide(
        self, examples: Sequence[Example], micro_tokens: int, prompt_length: int = 0
    ) -> list[tuple[list[Example], bool]]:
        """Return this process' passes over a step's examples, and of each whether it counts."""
        shares = divide_by_cost(examples, self.world.data_size)
        return [(part, True) for part in split_by_cost(shares[self.world.data_rank], micro_tokens, prompt_length)]

    def deal(self, items: Sequence[Item]) -> list[tuple[Item, bool]]:
        """Return this process' part of a list, and of each item whether it counts."""
        return [(item, True) for item in items[self.world.data_rank :: self.world.data_size]]

    def forward(self, work: Callable[[], Loss]) -> Loss:
        """Run a forward pass."""
        return work()

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Run a backward pass; `is_last`: of the step."""
        loss.backward()

    def rest(self) -> None:
        """Called after passes that no backward pass followed."""

    def add_up_gradients(self, parameters: Named) -> None:
        """Make each gradient the sum of all processes' own."""
        if self.world.size > 1:
            for bucket in _buckets(parameters):
                _add_up(bucket, self.world)

    def clip(self, parameters: Named, limit: float | None) -> Tensor:
        """Bound the norm of the whole gradient, and return what it was."""
        bound = math.inf if limit is None else limit
        return nn.utils.clip_grad_norm_([parameter for _, parameter in parameters], bound)

    def check(self, parameters: Named) -> None:
        """Raise TrainingError where processes no longer hold the same numbers."""
        if self.world.size == 1:
            return
        sums = [float(parameter.detach().double().sum()) for _, parameter in parameters]
        for rank, others in enumerate(self.world.gather(sums)):
            for (name, _), here, there in zip(parameters, sums, others, strict=True):
                if here != there and not (math.isnan(here) and math.isnan(there)):
                    raise TrainingError(
                        f"{name}: process {rank} holds other numbers than process {self.world.rank}; a method of this "
                        "stage does not do the same on every process: train on one, or report it"
                    )

    def finish(self) -> None:
        """Bring the trained model back whole, on the main process at least."""


class Sharded(Replicated):
    """The model's parameters are divided among the processes, and gathered block by block while they are needed.

    While it trains, `model.module` is a copy whose parameters are divided; `finish` puts the first one back.
    """

    is_whole: ClassVar[bool] = False

    def __init__(self, world: World, model: Model, dtype: torch.dtype) -> None:
        assert world.mesh is not None
        super().__init__(world)
        self.model, self.plain = model, model.module
        tensors = [*self.plain.parameters(), *self.plain.buffers()]
        # The copy is one of structure: it takes the tensors themselves.
        divided = copy.deepcopy(self.plain, {id(tensor): tensor for tensor in tensors})
        self.root: Any = shard(divided, model.anatomy, world.mesh, dtype)
        model.module = divided
        for parameter in self.plain.parameters():
            parameter.data = torch.empty(0)

    def divide(
        self, examples: Sequence[Example], micro_tokens: int, prompt_length: int = 0
    ) -> list[tuple[list[Example], bool]]:
        parts = divide_by_cost(examples, self.world.data_size)
        splits = [split_by_cost(part, micro_tokens, prompt_length) for part in parts]
        smallest = min(examples, key=lambda example: example.num_tokens)
        return _fill(splits[self.world.data_rank], max(map(len, splits)), [smallest])

    def deal(self, items: Sequence[Item]) -> list[tuple[Item, bool]]:
        mine = items[self.world.data_rank :: self.world.data_size]
        return _fill(mine, -(-len(items) // self.world.data_size), items[0])

    def forward(self, work: Callable[[], Loss]) -> Loss:
        kept: list[Loss] = []

        def total() -> Tensor:
            kept.append(work())
            return kept[0].total

        result = self.root(total)
        return replace(kept[0], total=result)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.root.set_requires_gradient_sync(is_last)
        self.root.set_reshard_after_backward(is_last, recurse=False)
        loss.backward()

    def rest(self) -> None:
        self.root.reshard()

    def add_up_gradients(self, parameters: Named) -> None:
        """Nothing is left to do: the last backward pass added them up."""

    def clip(self, parameters: Named, limit: float | None) -> Tensor:
        gradients = [parameter.grad for _, parameter in parameters if parameter.grad is not None]
        # What is not divided lies on several processes, and counts once.
        squares = sum(
            float(own(gradient).double().square().sum()) * num_pieces(gradient) / self.world.size
            for gradient in gradients
        )
        norm = math.sqrt(sum(self.world.gather(squares)))
        if limit is not None and norm > limit:
            for gradient in gradients:
                own(gradient).mul_(limit / (norm + 1e-6))  # as `clip_grad_norm_` does
        return torch.tensor(norm)

    def check(self, parameters: Named) -> None:
        """Nothing lies on two processes that did not come from one sum."""

    def finish(self) -> None:
        divided = self.model.module
        for (name, parameter), (same, piece) in zip(
            self.plain.named_parameters(), divided.named_parameters(), strict=True
        ):
            assert name == same
            gathered = whole(piece.detach())
            parameter.data = gathered.cpu() if self.world.is_main else torch.empty(0)
        self.model.module = self.plain


def is_divided(world: World, whole_for: Sequence[str]) -> bool:
    """Decide whether the processes divide a model's parameters.

    Args:
        whole_for: methods of the stage that need every number whole.

    Raises:
        SettingError: tensor parallel for a stage whose numbers must be whole.
    """
    if world.layout.tp > 1 and whole_for:
        reason = f"divides matrices, which {', '.join(whole_for)} must have whole"
        raise SettingError(KEY, f"tp={world.layout.tp}", reason, "take tp=1, or other methods")
    return world.size > 1 and not whole_for


def _fill(mine: Iterable[Item], count: int, filler: Item) -> list[tuple[Item, bool]]:
    passes = [(item, True) for item in mine]
    return passes + [(filler, False)] * (count - len(passes))


def _buckets(parameters: Named) -> list[list[nn.Parameter]]:
    """Return the parameters in groups of one type and about `BUCKET_VALUES` values, in order."""
    groups: dict[torch.dtype, list[list[nn.Parameter]]] = {}
    for _, parameter in parameters:
        of_type = groups.setdefault(parameter.dtype, [[]])
        if of_type[-1] and sum(member.numel() for member in of_type[-1]) + parameter.numel() > BUCKET_VALUES:
            of_type.append([])
        of_type[-1].append(parameter)
    return [group for of_type in groups.values() for group in of_type]


def _add_up(parameters: list[nn.Parameter], world: World) -> None:
    gradients = [parameter.grad for parameter in parameters]
    pieces = [
        torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    # A parameter that no process used keeps no gradient, as in one process.
    used = pieces[0].new_tensor([gradient is not None for gradient in gradients])
    flat = torch.cat([*pieces, used])
    world.add_up(flat)
    *summed, used = flat.split([*(piece.numel() for piece in pieces), len(parameters)])
    for parameter, piece, is_used in zip(parameters, summed, used.tolist(), strict=True):
        parameter.grad = piece.view_as(parameter) if is_used else None
