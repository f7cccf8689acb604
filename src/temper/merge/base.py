"""How deltas are combined: the axis of merge methods.

Decisions:
- Merging is done one tensor at a time, so that no more than a tensor of each model is held.
- A method that is a formula of each tensor is a `Formula`, and needs nothing else. A method that looks at data first
  (which models to take, how much of each) gets a `Bench`: there it pours a mixture into a model, looks at what comes
  out, and hands out the mixture that it has settled on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from temper.core.methods import Method
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source
from temper.measure.base import Subject
from temper.models.model import Model

Combine = Callable[[str, Tensor, Sequence[Tensor]], Tensor]
"""Takes a parameter's name, its value in the base and its change in each model (float32, of the base's shape), and
returns the merged change."""


@dataclass(frozen=True)
class Merging:
    """A mixture that a method has settled on."""

    combine: Combine
    details: Mapping[str, Any] = field(default_factory=dict)
    """what it chose, as JSON values, for the stage's record"""


class Bench(Protocol):
    """Where a method tries mixtures of the models that it is to merge."""

    of: Sequence[str]
    """the names of the models"""
    seed: int
    """the recipe's"""
    cache: Path
    """shared by the recipe's stages: prepared data"""
    on_bad_rows: OnBadRows

    @property
    def names(self) -> Sequence[str]:
        """The parameters that some model changes; a tied one once."""
        ...

    @property
    def model(self) -> Model:
        """A model of its own in float32: the base, until a mixture is poured."""
        ...

    def subject(self) -> Subject:
        """Return `model` as suites measure it, compared with the base."""
        ...

    def base(self, name: str) -> Tensor:
        """Return a parameter's value in the base, float32."""
        ...

    def changes(self, name: str) -> list[Tensor]:
        """Return a parameter's change in each model, float32; zeros where a model leaves it alone."""
        ...

    def pour(self, combine: Combine) -> None:
        """Make `model` the base plus a mixture."""
        ...

    def open(self, source: Source) -> Rows:
        """Open the rows of a source to learn from."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something in a line."""
        ...


class Merge(Method, axis="merge", packages=("temper.merge",)):
    """How are deltas combined?"""

    @property
    def is_symmetric(self) -> bool:
        """Whether the order of the models makes no difference, to rounding."""
        return False

    @property
    def keeps_one_model(self) -> bool:
        """Whether a model that is merged alone comes back, to rounding."""
        return True

    def check(self, num_models: int) -> None:
        """Raise SettingError where the settings do not fit the number of models."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), *(("data to learn from",) if cls.declares("sources") else ()))

    def sources(self) -> Sequence[Source]:
        """Return the data that it learns from."""
        return ()

    @abstractmethod
    def build(self, bench: Bench) -> Merging:
        """Return the mixture of the models on the bench."""


class Formula(Merge):
    """A method that is a formula of each tensor."""

    def build(self, bench: Bench) -> Merging:
        return Merging(self.combine)

    @abstractmethod
    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """Return the merged change of one parameter.

        Args:
            name: the parameter's name.
            base: its value in the base, float32.
            deltas: its change in each model, float32, of the base's shape.
        """
