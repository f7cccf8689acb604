"""What a fit offers to the methods that it puts to work: what trains, other models, other data.

An objective or a retention method declares what it reads in its settings (`models()`, sources); here it gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn

from temper.core.errors import SettingError
from temper.data.example import Example
from temper.data.source import Source
from temper.models.load import load_model
from temper.models.model import Model
from temper.signals.reference import START, Frozen, Past, Reference


def is_outside(name: str) -> bool:
    """Tell whether a name that asks for a model is a folder, a hub id or `lab:NAME`, and not a stage's."""
    return "/" in name or ":" in name or name.startswith((".", "~"))


def load_outside(name: str) -> Model:
    """Load a model from a folder or the hub, where no recipe knows stages.

    Raises:
        SettingError: the name is a stage's.
    """
    if not is_outside(name):
        raise SettingError("model", name, "is the model of a stage, and there is no recipe here", "give fit(load=...)")
    return load_model(name)


def _no_examples(sources: Sequence[Source], count: int) -> list[Example]:
    raise SettingError("of", [source.label for source in sources], "cannot be opened here", "use fit, or a recipe")


@dataclass(frozen=True)
class Setup:
    """What surrounds a method while it works on one model."""

    trained: Sequence[tuple[str, nn.Parameter]] = ()
    """the tuner's numbers, by name: all that may ever train, whether or not they train now"""
    at_start: Callable[[], AbstractContextManager[object]] = nullcontext
    """the context in which, with these numbers as they began, the model is what it was before the stage"""
    moves_numbers: bool = False
    """whether numbers come to stand for other places of the model while they train"""
    seed: int = 0
    load: Callable[[str], Model] = load_outside
    """gives the model of an earlier stage, `base`, or one from elsewhere (`is_outside`): frozen, on the device, in the
    precision of the stage"""
    examples: Callable[[Sequence[Source], int], list[Example]] = _no_examples
    """gives at most that many encoded examples of sources, or of the stage's own data where none is named: a fixed
    random draw by the stage's seed"""
    computing: Callable[[], AbstractContextManager[object]] = nullcontext
    """the context in which a forward pass runs (autocast); an objective's `loss` is called inside it"""

    def reference(self, model: Model, name: str = START) -> Reference:
        """Return a model to compare with.

        Args:
            model: the one that trains.
            name: `start` for what it was before the stage, else as `load` takes it.
        """
        return Past(model, self.trained, self.at_start) if name == START else Frozen(self.load(name))

    def refuse_moves(self, key: str, method: str) -> None:
        """Raise SettingError where numbers that a method remembers would stand for other places later on.

        Args:
            key: where the method is written.
            method: its name.
        """
        if self.moves_numbers:
            reason = "remembers numbers by their places, and this stage's tuner moves them while it trains"
            raise SettingError(key, method, reason, "take a tuner whose numbers stay, such as lora or full")
