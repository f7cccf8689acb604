"""A stage's figures: its curves over steps, and each suite's values over stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from temper.report import format as fmt
from temper.report.charts import Line, Mark, interval_chart, line_chart, smooth
from temper.report.read import StageRecord
from temper.report.views import GainTable

MAX_PANELS = 12
_TITLES = {"lr": "Learning rate", "grad_norm": "Gradient norm", "loss": "Loss"}
_NOT_CURVES = {"step", "progress", "epoch", "tokens", "supervised_tokens", "seconds", "validation_loss"}

Column = Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    """A chart with what is written above it."""

    title: str
    note: str
    chart: Markup
    keys: tuple[tuple[str, str], ...] = ()
    """(look, name) of each line, where there is more than one"""


def stage_panels(stage: StageRecord) -> list[Panel]:
    """Return loss, learning rate, gradient norm, speed and whatever else the stage wrote at each step."""
    metrics = stage.metrics
    steps = [step for step in metrics.get("step", []) if step is not None]
    if not steps:
        return []
    panels = []
    if "loss" in metrics or "validation_loss" in metrics:
        panels.append(_loss(stage.name, steps, metrics))
    panels += [_curve(stage.name, name, steps, metrics[name]) for name in ("lr", "grad_norm") if name in metrics]
    speeds = _speeds(metrics)
    if speeds:
        panels.append(_smoothed(stage.name, "Tokens per second", steps, speeds))
    others = [name for name in metrics if name not in _NOT_CURVES and name not in _TITLES]
    panels += [_curve(stage.name, name, steps, metrics[name]) for name in others]
    return panels[:MAX_PANELS]


def _window(steps: Column) -> int:
    return max(5, len(steps) // 25)


def _loss(stage: str, steps: Sequence[float], metrics: Mapping[str, Column]) -> Panel:
    lines, notes = [], []
    if "loss" in metrics:
        averages = smooth(metrics["loss"], _window(steps))
        lines += [Line("loss", steps, metrics["loss"], "raw"), Line("smoothed", steps, averages, "smooth")]
        notes.append(f"{_last(averages)} at the end")
    if "validation_loss" in metrics:
        lines.append(Line("validation", steps, metrics["validation_loss"], "checked"))
        notes.append(f"validation {_last(metrics['validation_loss'])}")
    chart = line_chart(f"Loss of stage {stage}", lines, description=_trend(steps, metrics.get("loss", lines[0].y)))
    return Panel("Loss", "; ".join(notes), chart, tuple((line.look, line.name) for line in lines))


def _curve(stage: str, name: str, steps: Sequence[float], values: Column) -> Panel:
    if name != "lr" and sum(value is not None for value in values) > 60:
        return _smoothed(stage, _TITLES.get(name, name), steps, values)
    title = _TITLES.get(name, name)
    line = Line(title.lower(), steps, values, "smooth")
    chart = line_chart(f"{title} of stage {stage}", [line], description=_trend(steps, values), may_be_log=name != "lr")
    return Panel(title, _peak(values), chart)


def _smoothed(stage: str, title: str, steps: Sequence[float], values: Column) -> Panel:
    averages = smooth(values, _window(steps))
    lines = [Line(title.lower(), steps, values, "raw"), Line("smoothed", steps, averages, "smooth")]
    chart = line_chart(f"{title} of stage {stage}", lines, description=_trend(steps, values))
    finite = sorted(value for value in values if value is not None and math.isfinite(value))
    return Panel(title, f"median {fmt.number(finite[len(finite) // 2])}" if finite else "", chart)


def _speeds(metrics: Mapping[str, Column]) -> list[float | None]:
    """Return tokens per second of each step; tokens and seconds are counted from the stage's start."""
    if "tokens" not in metrics or "seconds" not in metrics:
        return []
    totals = list(zip(metrics["tokens"], metrics["seconds"], strict=True))
    speeds: list[float | None] = []
    for (tokens, seconds), (tokens_before, seconds_before) in zip(totals, [(0.0, 0.0), *totals], strict=False):
        is_known = None not in (tokens, seconds, tokens_before, seconds_before)
        passed = (seconds or 0.0) - (seconds_before or 0.0)
        speeds.append(((tokens or 0.0) - (tokens_before or 0.0)) / passed if is_known and passed > 0 else None)
    return speeds


def _last(values: Column) -> str:
    return fmt.number(next((value for value in reversed(values) if value is not None), None))


def _peak(values: Column) -> str:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return f"greatest {fmt.number(max(finite))}" if finite else ""


def _trend(steps: Sequence[float], values: Column) -> str:
    """Return a curve in a sentence, for those who cannot see it."""
    points = [
        (step, value) for step, value in zip(steps, values, strict=True) if value is not None and math.isfinite(value)
    ]
    if not points:
        return "No finite numbers."
    (first, start), (last, end) = points[0], points[-1]
    low, high = min(value for _, value in points), max(value for _, value in points)
    return (
        f"{fmt.number(start)} at step {first:g}, {fmt.number(end)} at step {last:g}; "
        f"between {fmt.number(low)} and {fmt.number(high)}."
    )


def suite_panels(table: GainTable) -> list[Panel]:
    """Return one chart for each suite: every model's value with its interval, the base's as a line."""
    panels = []
    for suite in table.suites:
        marks = []
        for row in table.rows:
            result = row.cells[suite.label].suite
            if result is not None:
                change = row.cells[suite.label].base
                verdict = change.verdict if change is not None else "reference"
                marks.append(Mark(row.name, result.value, result.low, result.high, verdict))
        base = table.rows[0].cells[suite.label].suite
        values = "; ".join(f"{mark.label} {fmt.number(mark.value, suite.unit)}" for mark in marks)
        chart = interval_chart(
            suite.label, marks, suite.unit, reference=base.value if base is not None else None, description=values
        )
        scale = fmt.scale_of(suite.unit)
        note = f"{suite.metric}, {scale}" if scale and scale != suite.metric else suite.metric
        note += f", {'higher' if suite.higher_is_better else 'lower'} is better"
        if suite.num_examples:
            left_out = f", {fmt.count(suite.num_left_out)} left out" if suite.num_left_out else ""
            note += f"; {fmt.plural(suite.num_examples, 'example')}{left_out}"
        panels.append(Panel(suite.label, note, chart))
    return panels
