"""In what proportion the sources of a training stage are drawn: the axis of mixtures.

Without one, a stage's rows are put together and shuffled, so that each source has the weight of its rows. A mixture
gives each source a weight of its own, and an online one changes them while training, by the loss on rows that are held
out of each source.

Legend: S sources.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from temper.core.methods import Live, Method


@dataclass(frozen=True)
class Sources:
    """What is mixed."""

    sizes: tuple[int, ...]
    """rows of each source"""
    losses: Callable[[], NDArray[np.float64]]
    """measures the model as it is now on the rows held out of each source, nats per token, (S,)"""


class Mixing(Live):
    """A mixture at work."""

    is_online = False
    """whether the weights change while training"""

    def __init__(self, weights_S: NDArray[np.float64]) -> None:
        self.weights_S = normalised(weights_S)
        """what each source is drawn by, 1 in sum"""

    def remarks(self) -> Sequence[str]:
        if len(self.weights_S) > 1:
            return ()
        return ("train.mix: there is one source, so nothing was mixed; name more in `data`, or leave mix out",)


class Mix(Method, axis="mix", packages=("temper.mix",)):
    """In what proportion?"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), *(("rows held out of each source",) if cls.declares("num_held_out") else ()))

    @property
    def num_held_out(self) -> int:
        """Rows of each source that are held out of training, to measure it by."""
        return 0

    @abstractmethod
    def build(self, sources: Sources) -> Mixing:
        """Return the mixture at work, before the first step.

        Raises:
            SettingError: settings that do not fit the sources.
        """


def normalised(weights_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights with 1 as their sum."""
    return np.asarray(weights_S / weights_S.sum())
