"""A progress bar: share done, time left, tokens per second, loss. A line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from temper.engine.loop import Metrics

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def showing_progress(name: str, num_steps: int | None) -> Iterator[Callable[[Metrics], None]]:
    """Yield a function that takes each step's metrics and shows them."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _Lines(name, num_steps)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("step {task.fields[step]}"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=1.0, step=0, loss=float("nan"), rate=0.0)
        rate = _Rate()

        def show(metrics: Metrics) -> None:
            progress.update(
                task,
                completed=metrics["progress"],
                step=int(metrics["step"]),
                loss=metrics["loss"],
                rate=rate.update(metrics),
            )

        yield show


class _Rate:
    """Tokens per second since the first step of this process, so that earlier pauses do not count."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None

    def update(self, metrics: Metrics) -> float:
        if self.first is None:
            self.first = (metrics["tokens"], metrics["seconds"])
            return metrics["tokens"] / metrics["seconds"] if metrics["seconds"] else 0.0
        elapsed = metrics["seconds"] - self.first[1]
        return (metrics["tokens"] - self.first[0]) / elapsed if elapsed > 0 else 0.0


class _Lines:
    """One line at the first step, then at intervals, then at the end."""

    def __init__(self, name: str, num_steps: int | None) -> None:
        self.name, self.num_steps, self.rate, self.last = name, num_steps, _Rate(), 0.0

    def __call__(self, metrics: Metrics) -> None:
        now, rate = time.monotonic(), self.rate.update(metrics)
        if metrics["progress"] < 1 and now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        of = f"/{self.num_steps}" if self.num_steps is not None else ""
        done = metrics["progress"]
        left = metrics["seconds"] * (1 - done) / done if done > 0 else 0.0
        print(
            f"{self.name}: {done:4.0%}  step {int(metrics['step'])}{of}  loss {metrics['loss']:.3f}  "
            f"{rate:,.0f} tokens/s  {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
