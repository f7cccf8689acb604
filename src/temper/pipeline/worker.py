"""Runs in processes of their own, some at a time.

Decisions:
- Each run has a fresh process, so that its memory and time are its own. It is forked from a server that has imported
  what the calling process has (seconds for each run otherwise) and computed nothing.
- A process leaves its outcome in a file, whole or not at all. One that dies leaves none, and is started again by the
  next comparison; what its stages had finished stays.
- A process ends when the one that asked for it does, however that ended: nothing trains on behind the back of a
  comparison that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from temper.core.errors import DataError, GateError, ModelError, SettingError, StageError, TemperError, TrainingError
from temper.core.files import write_json
from temper.engine.distributed import World
from temper.pipeline.machine import machine
from temper.pipeline.recipe import Recipe
from temper.pipeline.result import Run, StageResult
from temper.pipeline.run import run
from temper.stages.base import Stage

FINAL = (SettingError, TrainingError, DataError, ModelError, GateError)
"""failures that come again whenever the run is repeated, so that it need not be"""
LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """A run to be made."""

    recipe: Recipe
    key: str
    """names all that its outcome follows from"""
    runs: Path
    """the folder under which it gets its own"""
    outcome: Path
    """the file that takes the outcome"""
    command: tuple[str, ...]
    """the command that repeats it"""
    num_at_once: int
    """runs that are made at the same time"""
    threads: int

    @property
    def way(self) -> dict[str, Any]:
        """How it is made, on which its time depends."""
        return {"jobs": self.num_at_once, "threads": self.threads, "processor": machine()["processor"].strip()}


def run_jobs(jobs: Iterable[Job], num_at_once: int, tell: Callable[[Job, int | None], None]) -> None:
    """Run jobs, a number of them at a time.

    Args:
        jobs: what to run.
        num_at_once: processes at the same time.
        tell: called with each job that ended, and the exit code of its process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [name for name in sys.modules if name.partition(".")[0] in ("temper", "transformers")]
    )
    waiting, active = deque(jobs), dict[object, tuple[ForkServerProcess, Job]]()
    try:
        while waiting or active:
            while waiting and len(active) < num_at_once:
                job = waiting.popleft()
                process = context.Process(target=work, args=(job,))
                process.start()
                active[process.sentinel] = process, job
            for sentinel in wait([process.sentinel for process, _ in active.values()]):
                process, job = active.pop(sentinel)
                process.join()
                tell(job, process.exitcode)
    finally:
        for process, _ in active.values():
            process.terminate()
            process.join()


def work(job: Job) -> None:
    """Make a run and leave its outcome; what it says goes to a file in its folder."""
    end_with_parent()
    folder = job.runs / job.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(job.threads)
    try:
        result = run(job.recipe, runs=job.runs, command=job.command, world=World())
    except TemperError as error:
        cause = error.__cause__ if isinstance(error, StageError) and error.__cause__ is not None else error
        reason = str(cause) if isinstance(cause, TemperError) else f"{type(cause).__name__}: {cause}"
        failure = {"reason": " ".join(reason.split()), "is_final": isinstance(cause, FINAL)}
        failure["is_refusal"] = isinstance(cause, SettingError)
        write_json(job.outcome, {"key": job.key, "failure": failure})
        return
    write_json(job.outcome, {"key": job.key, "result": {**numbers(result), "way": job.way}})


def end_with_parent() -> None:
    """Let this process end when the one that asked for it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


def numbers(result: Run) -> dict[str, Any]:
    """Return what a run gained, lost and cost, as plain values: of its last model against the base.

    Raises:
        SettingError: the run measured no model.
    """
    stages = [stage for name, stage in result.stages.items() if name != "base"]
    kinds = Stage.methods()
    measured = [stage for stage in stages if stage.suites and kinds[stage.kind].produces == "model"]
    if not measured:
        raise SettingError("stages", [stage.name for stage in stages], "makes no model that is measured", "add one")
    last, base = measured[-1], result.stages["base"].suites
    costs = [stage.record.get("cost", {}) for stage in stages]
    details = [stage.record.get("details", {}) for stage in stages]
    trained = [cost for cost in costs if "start_memory_bytes" in cost]
    made = _made(last)
    return {
        "suites": {
            label: {
                **{name: suite[name] for name in ("role", "metric", "unit", "higher_is_better", "value")},
                "base": base[label]["value"],
            }
            for label, suite in last.suites.items()
            if label in base
        },
        "seconds": sum(cost.get("seconds", 0.0) + cost.get("attach_seconds", 0.0) for cost in costs),
        "tokens": sum(cost.get("tokens", 0) for cost in costs),
        "steps": sum(cost.get("steps", 0) for cost in costs),
        "flops": sum(cost.get("flops", 0.0) for cost in costs),
        "peak_memory_bytes": max((cost["peak_memory_bytes"] for cost in trained), default=None),
        "memory_bytes": max((cost["peak_memory_bytes"] - cost["start_memory_bytes"] for cost in trained), default=None),
        "trained": max((own["trainable_parameters"] for own in details if "trainable_parameters" in own), default=None),
        "warnings": [warning for stage in stages for warning in stage.record.get("warnings", [])],
        "delta_bytes": sum(file.stat().st_size for place in made for file in place.rglob("*") if file.is_file()),
    }


def _made(stage: StageResult) -> Sequence[Path]:
    """Return where the change or the model that a stage made lies."""
    return [stage.folder / name for name in ("delta", "model") if (stage.folder / name).is_dir()]
