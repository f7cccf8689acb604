"""Which examples are worth it: the axis of selectors.

A selector looks at a pool of rows, and at what models say of them (`signals.scores`), and returns which rows are kept
and every row's score. It trains nothing; what it needs of training (a warm-up's trajectory) an earlier stage made.

Legend: E rows (examples).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from temper.core.methods import Method
from temper.data.example import Format
from temper.data.rows import Rows
from temper.data.source import Source
from temper.models.model import Model
from temper.signals.scores import Scores


@dataclass(frozen=True)
class Pool:
    """What is chosen from, and with what."""

    rows: Rows
    scores: Callable[[Rows], Scores]
    """the table of some rows' signals: the pool's own, or a target's"""
    load: Callable[[str], Model]
    """a stage's model, or the base's"""
    folder: Callable[[str], Path | None]
    """a stage's folder"""
    open: Callable[[Source], Rows]
    """other data that the selector names, such as a target's examples"""
    model: str
    """the stage, or base, whose model the pool is chosen for"""
    seed: int


@dataclass(frozen=True)
class Selection:
    """What a selector decided."""

    kept: NDArray[np.int64]
    """indices of the kept rows, ascending"""
    score_E: NDArray[np.floating]
    """higher is better; NaN where a row has none"""
    parts: Mapping[str, NDArray[np.floating]] | None = None
    """further numbers of each row, (E,), for the reader"""


class Selector(Method, axis="select", packages=("temper.select",)):
    """Which examples are worth it?"""

    formats: ClassVar[frozenset[Format]] = frozenset({"text", "messages", "completion", "preference", "label"})
    """the row formats that it can choose from"""
    needs_model: ClassVar[bool] = True
    """whether it looks at the model that the rows are chosen for"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        model = ("the model that rows are chosen for",) if cls.needs_model else ()
        others = ("further stages: their models, or what they left in their folders",) if cls.declares("models") else ()
        return (*super().needs(), *model, *others)

    def models(self) -> Sequence[str]:
        """Return further stages that it reads."""
        return ()

    @abstractmethod
    def select(self, pool: Pool) -> Selection:
        """Choose.

        Raises:
            SettingError: a setting that does not fit the pool.
            DataError: a row that cannot be scored.
        """


def best(score_E: NDArray[np.floating], share: float) -> NDArray[np.int64]:
    """Return the indices of the share of rows with the highest scores, ascending; of equals the first.

    The share is of the rows that have a score, and one row at least is kept where there is one.
    """
    candidates = np.flatnonzero(~np.isnan(score_E))
    num = min(len(candidates), max(1, round(share * len(candidates))))
    order = np.argsort(-score_E[candidates], kind="stable")
    return np.sort(candidates[order[:num]]).astype(np.int64)
