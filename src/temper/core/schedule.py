"""Values that change over a stage: `value(moment)`.

Progress, not a count of steps, drives a schedule: it is exact at every step even when the number of
steps is not known beforehand (rows are tokenised while training, batches are cut by tokens).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from pydantic import Field

from temper.core.methods import Method


@dataclass(frozen=True)
class Moment:
    """Where a stage stands before an optimizer step."""

    step: int
    """optimizer steps done so far"""
    progress: float
    """share of the stage's budget that is used up, 0 to 1"""
    epoch: int = 0
    """passes over the data done so far"""
    stage: str = ""
    metric: float | None = None
    """the last validation loss, in nats per token"""
    passes: float = 0.0
    """passes over the data done so far, the current one's share included"""


class Schedule(Method, axis="schedule", packages=("temper.core",)):
    """A factor between 0 and 1 over a stage, multiplied with the peak value."""

    warmup: float = Field(
        0.03, ge=0, lt=1, description="share of the stage over which the value rises from 0 to its peak"
    )
    floor: float = Field(0.0, ge=0, le=1, description="the lowest factor that the decay reaches")

    def value(self, moment: Moment) -> float:
        """Return the factor at a moment, from 0 to 1; the first step of a warm-up is never 0."""
        if moment.progress < self.warmup:
            # Half a step's worth of progress would be 0 at the first step; one step past it never is.
            per_step = moment.progress / moment.step if moment.step else self.warmup / 100
            return min(1.0, (moment.progress + per_step) / self.warmup)
        after = (moment.progress - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * self.decay(min(after, 1.0))

    @abstractmethod
    def decay(self, after: float) -> float:
        """Return the factor at a share `after` (0 to 1) of what follows the warm-up."""


class Constant(Schedule, name="constant"):
    """The peak value throughout, after the warm-up."""

    def idle(self) -> dict[str, str]:
        return {"floor": "where the value decays, as in cosine or linear"}

    def decay(self, after: float) -> float:
        return 1.0


class Linear(Schedule, name="linear"):
    """Straight down from the peak to the floor."""

    def decay(self, after: float) -> float:
        return 1 - after


class Cosine(Schedule, name="cosine"):
    """Half a cosine from the peak to the floor.

    Paper: SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983 (one cycle, no restart).
    """

    def decay(self, after: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * after))


class WarmupStableDecay(Schedule, name="wsd"):
    """The peak value, then a straight decay over the last share of the stage.

    Paper: MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies,
    arXiv:2404.06395. Deviation: the decay is linear, where the paper's is exponential.
    """

    decay_share: float = Field(
        0.2, gt=0, le=1, description="share of what follows the warm-up over which the value decays"
    )

    def decay(self, after: float) -> float:
        stable = 1 - self.decay_share
        return 1.0 if after <= stable else (1 - after) / self.decay_share
