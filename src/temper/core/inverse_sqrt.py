"""A schedule that falls with the square root of time."""

from __future__ import annotations

import math

from pydantic import Field

from temper.core.schedule import Schedule

TIMESCALE = 0.03


class InverseSquareRoot(Schedule, name="inverse_sqrt"):
    """The peak divided by the square root of time: fast at first, slower and slower, and without an end in sight.

    factor(t) = 1 / sqrt((t + T - w) / T) after the warm-up, t being the share of the stage that is done, w `warmup` and
    T `timescale`. With T = w, as by default, it is sqrt(w / t), the paper's min(t^-0.5, t w^-1.5) with a peak of 1.

    Paper: Attention Is All You Need, arXiv:1706.03762, section 5.3; T is that of transformers and of the authors' code
    for Scaling Vision Transformers, arXiv:2106.04560.
    Deviation: t, w and T are shares of the stage and not steps, so that the end of a stage is always the same factor.
    """

    timescale: float | None = Field(
        None,
        gt=0,
        le=1,
        description=f"T, a share of the stage: larger falls slower; by default warmup, or {TIMESCALE} without one",
    )

    def decay(self, after: float) -> float:
        timescale = self.timescale or self.warmup or TIMESCALE
        return 1 / math.sqrt(1 + after * (1 - self.warmup) / timescale)
