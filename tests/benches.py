"""A bench with models that a finished run left, for tests of merge methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltas import make_low_rank
from families import tiny
from finished_run import FinishedRun
from temper.data.rows import Rows
from temper.data.source import Source, Split
from temper.stages.merge import StageBench

ROWS = {"lab": {"skill": "copy", "num": 6}}
"""a source of six short rows"""
LEARNING = {"data": [ROWS], "epochs": 2, "batch_size": 3}
NEEDS: dict[str, dict[str, Any]] = {
    "learned_soup": LEARNING,
    "atlas": LEARNING,
    "greedy_soup": {"by": {"perplexity": {"source": ROWS}}},
}
"""settings without which a method cannot be, or would take long"""


class RunWithData(FinishedRun):
    """A finished run whose stages may read data."""

    def open(self, source: Source, split: Split = "train") -> Rows:
        return source.open(split, self.cache, self.on_bad_rows)


def run_with_three(folder: Path, family: str = "llama") -> FinishedRun:
    """A run with a stage of whole weights and three of low-rank changes to the base."""
    run = RunWithData(folder, family)
    run.finish("whole", tiny(family, seed=1))
    for seed, name in enumerate(("lora", "other", "third")):
        run.finish(name, make_low_rank(tiny(family), seed))
    return run


def bench_of(run: FinishedRun, of: Sequence[str]) -> StageBench:
    """A bench on which the models of some stages are to be merged."""
    return StageBench(run, of, "base")
