"""How a model is made small: the axis of compressors.

A compressor turns the change that a stage made, or its whole model, into a smaller one. It may look at the outcome on
held-out rows before it settles, and hands out what the stage writes: a change (to the model that the change was made
to), or a whole model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from temper.core.methods import Method
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source
from temper.delta.base import Delta
from temper.measure.base import Suite
from temper.models.model import Model


@dataclass(frozen=True)
class Compressed:
    """What a compressor made."""

    result: Delta | Model
    details: Mapping[str, Any] = field(default_factory=dict)
    """what it chose, as JSON values, for the stage's record"""


class Original(Protocol):
    """What is to be made small."""

    seed: int
    cache: Path
    on_bad_rows: OnBadRows

    def change(self) -> Delta:
        """Return what was done to the start to make the model."""
        ...

    def load(self) -> Model:
        """Load the model, fresh."""
        ...

    def score(self, suite: Suite, change: Delta) -> float:
        """Return a suite's value of the start with a change; the higher the better, whatever the suite."""
        ...

    def open(self, source: Source) -> Rows:
        """Open the rows of a source to learn from."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something in a line."""
        ...


class Compress(Method, axis="compress", packages=("temper.compress",)):
    """How is a model made small?"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), *(("data to learn from",) if cls.declares("sources") else ()))

    def sources(self) -> Sequence[Source]:
        """Return the data that it learns from."""
        return ()

    @abstractmethod
    def build(self, original: Original) -> Compressed:
        """Return the smaller change, or the smaller model."""
