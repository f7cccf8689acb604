"""Which numbers move, and in what form: the axis of tuners.

A tuner is settings; `attach` hands out a `Tuning`, which holds the trainable numbers. The engine trains
whatever `parameters()` yields and never asks which tuner it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.core.methods import CALIBRATION, Live, Method, on_many_processes
from temper.core.schedule import Moment
from temper.data.pack import Batch
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.signals.passes import Pass


class Tuning(Live, ABC):
    """A tuner at work on one model. Attaching changes no output, attached but untrained = base, where the tuner
    `starts_at_base`."""

    model: Model
    moves_numbers: ClassVar[bool] = False
    """The numbers of a parameter come to stand for other places of the model while it trains. What remembers numbers by
    their places (an importance of each, a past that is taken anew) cannot be used with it."""

    @abstractmethod
    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable numbers by a name that is stable across runs; all are float32 (master) weights."""

    def movable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every number that may ever train, by name, whether or not it trains now."""
        return self.parameters()

    def at_start(self) -> AbstractContextManager[object]:
        """Return the context in which the model computes as it did when this was attached, where what is `movable` has
        its first values: whatever else has changed is put aside for as long."""
        return nullcontext()

    def take_change(self) -> Mapping[str, Tensor] | None:
        """Tell whether another set of numbers trains since the last call; asked after every `before_step`.

        Returns:
            None where `parameters()` is what it was. Else, by name, where the numbers of a parameter that stays come
            from (int64, one place in its former self for each, -1 for a new one), so that the optimizer's state goes
            with them. A parameter that is not named keeps its state, a new one has none, one that has gone loses it.
        """
        return None

    def numbers(self) -> dict[str, Tensor]:
        """Return, by stable name, all that training has changed: what a checkpoint holds."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        """Take back what `numbers` returned, after `load_state_dict`."""
        for name, mine in self.numbers().items():
            mine.copy_(numbers[name])

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold what does not train in the type that products are computed in, to spare memory.

        Buffers (the frequencies of rotary positions) keep their own precision.
        """
        for parameter in self.model.module.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def before_batches(self, batches: Sequence[Batch], moment: Moment) -> None:
        """Look at all micro-batches of a step, with their rows' columns, before the first of them is computed."""

    def before_pass(self, batch: Batch) -> None:
        """Called before a micro-batch is run for its loss."""

    def after_pass(self, batch: Batch) -> Tensor | None:
        """Called after it, before the backward pass: return what it adds to the step's objective, a scalar, or None."""
        return None

    def penalty(self) -> Tensor | None:
        """Return a scalar added to every step's objective, or None."""
        return None

    @property
    def is_result(self) -> bool:
        """Whether what it holds now may be a stage's result. Until it is, no validation counts: none is the best, and
        none has failed to be."""
        return True

    def further_passes(self, batches: Sequence[Batch], moment: Moment) -> Iterable[Pass]:
        """Return what it runs forward in a step besides the pass over each micro-batch that trains."""
        return ()

    @property
    def num_picked_from(self) -> int:
        """How many numbers of frozen matrices have their gradient computed all the same, to pick from it."""
        return 0

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the result into a stage's folder: `delta/` (a change to the base) or `model/` (whole weights)."""

    @abstractmethod
    def merge(self) -> None:
        """Fold the change into the model's own weights and detach; the model then equals the attached one."""

    @abstractmethod
    def detach(self) -> None:
        """Take the tuner off. Where it left the base's weights alone, the base is back bit for bit; where they were
        held packed, it goes on with the numbers that it was trained with."""


class Tune(Method, axis="tune", packages=("temper.tune",)):
    """Which numbers move, and in what form?"""

    default_lr: ClassVar[float] = 1e-5
    """peak learning rate where the recipe names none"""
    starts_at_base: ClassVar[bool] = True
    """Attached but untrained the model gives what it gave before, bit for bit but for another order of sums. Where it
    is false the numbers begin elsewhere; taking the tuner off still gives the base back."""
    works_on_pieces: ClassVar[bool] = False
    """What trains are parameters of `model.module` and nothing else, looked up there each time `parameters` is asked,
    so that they may be divided among processes (DTensor). Where it is false, each process holds everything."""

    leaves_base: ClassVar[bool] = False
    """It reads the matrices of the model's blocks and writes none of them while it trains, nor into what it saves: they
    may be held packed meanwhile."""
    needs_gradient: ClassVar[bool] = False
    """It looks at the gradients of training itself, which an optimizer without a backward pass does not make."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        calibration = (CALIBRATION,) if cls.declares("calibration") else ()
        gradient = ("an optimizer with a backward pass: it looks at gradients",) if cls.needs_gradient else ()
        return (*super().needs(), *calibration, *gradient, on_many_processes(cls.works_on_pieces))

    @property
    def prompt_length(self) -> int:
        """How many positions it takes before every document."""
        return 0

    def calibration(self, model: Model) -> Calibration | None:
        """Declare what is to be measured on rows before attaching; None where nothing is."""
        return None

    @abstractmethod
    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> Tuning:
        """Freeze what does not move, make what does, and return it.

        Args:
            calibration: what `calibration` declared, filled by the engine.

        Raises:
            SettingError: a setting that does not fit this model.
        """


def filled(calibration: Calibration | None, key: str, value: object) -> Calibration:
    """Return a calibration that a setting cannot do without.

    Raises:
        SettingError: there is none.
    """
    if calibration is None:
        raise SettingError(
            key,
            value,
            "needs a calibration pass before it is attached",
            "train with `fit`, or fill what `calibration` declares with `temper.signals.calibration.observe`",
        )
    return calibration
