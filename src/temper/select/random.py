"""A random share of the rows: the control that every selector is held against, and a warm-up's data."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from temper.select.base import Pool, Selection, Selector, best


class Random(Selector, name="random"):
    """Keep a uniformly random share of the rows.

    Each row's score is a seeded draw u ~ U(0, 1), and the highest are kept: a smaller share is part of a larger one.

    Source: the control of every paper on data selection.
    """

    needs_model: ClassVar[bool] = False

    keep: float = Field(0.5, gt=0, le=1, description="share of the rows that is kept")

    def select(self, pool: Pool) -> Selection:
        draws_E = np.random.default_rng(pool.seed).random(len(pool.rows))
        return Selection(best(draws_E, self.keep), draws_E)
