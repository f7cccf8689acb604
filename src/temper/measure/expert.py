"""How a suite was learned among others, beside a single-task expert: a model made from the base by that suite alone.

Papers: Lifelong Learning Metrics, arXiv:2201.08278, and its authors' code (`l2metrics`): relative performance, sample
efficiency. Riemannian Walk for Incremental Learning, arXiv:1801.10112: intransigence. For each suite, averaged then,

    relative performance  sum of the learner's performance over the first n experiences / that of the expert's,
                          with n as many as the shorter of the two took
    sample efficiency     (saturation / expert's saturation) x (expert's experiences to saturation / the learner's),
                          saturation being the highest value of the smoothed curve, and its place the first one there
    intransigence         a*_k - a_k,k: what the expert reaches in the end minus what the learner did

Curves are smoothed by a running mean over a fifth of them, at most 100 experiences, reflected at both ends.

Deviations:
- An experience is an optimizer step, and performance is exp(-loss), the likelihood of what a step learned from, since
  suites are measured when a stage has ended. Learner and expert must have been trained towards the same.
- Experiences are counted from 1, so that an expert that is best at once has taken one and not none.
- The reference of intransigence is the expert; the paper trains one on all data up to that task together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Expert:
    """A single-task expert of a suite, beside the stage that learned it among others."""

    row: int
    """the expert's, in the matrix"""
    losses: Sequence[float] = ()
    """of each step of the expert's training; empty where they are unknown, or of another kind than the learner's"""
    learner_losses: Sequence[float] = ()


def relative_performance(losses: Sequence[float], expert_losses: Sequence[float]) -> float | None:
    """Return how much performance the learner had while it learned, as a multiple of the expert's."""
    num = min(len(losses), len(expert_losses))
    if num == 0:
        return None
    return float(_performance(losses)[:num].sum() / _performance(expert_losses)[:num].sum())


def sample_efficiency(losses: Sequence[float], expert_losses: Sequence[float]) -> float | None:
    """Return how high and how soon the learner came to its best, as a multiple of the expert."""
    if not len(losses) or not len(expert_losses):
        return None
    (best, steps), (expert_best, expert_steps) = _saturation(losses), _saturation(expert_losses)
    return best / expert_best * expert_steps / steps


def _saturation(losses: Sequence[float]) -> tuple[float, int]:
    """Return the highest smoothed performance, and how many steps it took."""
    curve = _smoothed(_performance(losses))
    return float(curve.max()), int(curve.argmax()) + 1


def _smoothed(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    width = min(len(curve) // 5, 100)
    if width < 3:
        return curve
    reflected = np.concatenate([curve[width - 1 : 0 : -1], curve, curve[-2 : -width - 1 : -1]])
    means = np.convolve(np.full(width, 1 / width), reflected, mode="valid")
    return means[width // 2 - 1 :][: len(curve)]


def _performance(losses: Sequence[float]) -> NDArray[np.float64]:
    return np.exp(-np.asarray(losses, dtype=np.float64))
