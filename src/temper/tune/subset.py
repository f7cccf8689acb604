"""Subsets: which of the model's own tensors train, and from when on.

The primitive below all methods that train some whole tensors of the model at a time. A *unit* is a module or a block;
what is active may change at step boundaries, and the optimizer keeps state for what is active alone. What may ever
move is held in float32, so that nothing is lost when a tensor rests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from temper.models.biases import check_saveable
from temper.models.load import save_model
from temper.models.model import Model
from temper.tune.base import Tuning


class SubsetTuning(Tuning):
    """Some of the model's parameters at work, as float32 master weights.

    Args:
        active: names of the parameters that train at first.
        movable: names of those that may ever train; what is active, if not given.

    Raises:
        ModelError: a model that cannot be saved whole.
    """

    def __init__(self, model: Model, active: Collection[str], movable: Collection[str] | None = None) -> None:
        check_saveable(model.module)  # before it trains, and not after
        self.model = model
        self.stored = {name: parameter.dtype for name, parameter in self.named.items()}
        self.movable_names = [name for name in self.named if name in set(active if movable is None else movable)]
        self.active: list[str] = []
        self._has_changed = False
        for parameter in self.named.values():
            parameter.data = parameter.data.float()
        self.activate(active)
        self._has_changed = False

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """The model's parameters by name, as they are now: dividing a model puts others in their place."""
        return dict(self.model.module.named_parameters())

    def activate(self, names: Collection[str]) -> None:
        """Train these parameters from now on, and no others."""
        chosen = set(names)
        assert chosen <= set(self.movable_names), sorted(chosen - set(self.movable_names))
        active = [name for name in self.movable_names if name in chosen]
        self._has_changed = self._has_changed or active != self.active
        self.active = active
        for name, parameter in self.named.items():
            parameter.requires_grad_(name in chosen)

    def hold_in(self, dtype: torch.dtype) -> None:
        """Leave what rests in float32: it is part of the result, and must not be rounded on its way."""

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        named = self.named
        yield from ((name, named[name]) for name in self.active)

    def movable(self) -> Iterator[tuple[str, nn.Parameter]]:
        named = self.named
        yield from ((name, named[name]) for name in self.movable_names)

    def take_change(self) -> Mapping[str, Tensor] | None:
        has_changed, self._has_changed = self._has_changed, False
        return {} if has_changed else None

    def numbers(self) -> dict[str, Tensor]:
        named = self.named
        return {name: named[name].detach() for name in self.movable_names}

    def state_dict(self) -> dict[str, Any]:
        return {"active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.activate(state["active"])
        self._has_changed = False

    def save(self, folder: Path) -> None:
        """Write `model/` in the precision that the base is stored in."""
        self.merge()
        save_model(self.model, folder / "model")

    def merge(self) -> None:
        """Round the weights to the precision that the base is stored in; frozen ones come back as they were."""
        for name, parameter in self.named.items():
            parameter.data = parameter.data.to(self.stored[name])

    def detach(self) -> None:
        for parameter in self.named.values():
            parameter.requires_grad_(False)


def parameters_under(model: Model, *paths: str) -> list[str]:
    """Return the names of the parameters in some modules, in the model's order."""
    prefixes = tuple(f"{path}." for path in paths)
    return [name for name, _ in model.module.named_parameters() if name.startswith(prefixes)]
