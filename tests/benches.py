"""A bench with models that a finished run left, for tests of merge methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltas import make_low_rank
from families import tiny
from finished_run import FinishedRun
from temper.stages.merge import StageBench

NEEDS: dict[str, dict[str, Any]] = {}
"""settings without which a method cannot be"""


def run_with_three(folder: Path, family: str = "llama") -> FinishedRun:
    """A run with a stage of whole weights and three of low-rank changes to the base."""
    run = FinishedRun(folder, family)
    run.finish("whole", tiny(family, seed=1))
    for seed, name in enumerate(("lora", "other", "third")):
        run.finish(name, make_low_rank(tiny(family), seed))
    return run


def bench_of(run: FinishedRun, of: Sequence[str]) -> StageBench:
    """A bench on which the models of some stages are to be merged."""
    return StageBench(run, of, "base")
