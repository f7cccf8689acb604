"""What the page and the terminal show, computed from a run's records; no markup here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temper.report import format as fmt
from temper.report.read import Change, RunRecord, SampleOutput, StageRecord, SuiteResult, mapping, to_float

MAX_SUITES_ACROSS = 6
MAX_SAMPLES_OF_SUITE, MAX_SAMPLES = 6, 60
FEW_SHOT = "few-shot"
_KNOWN_DETAILS = ("parameters", "trainable_parameters", "rows", "bad_rows", "truncated")


@dataclass(frozen=True)
class Cell:
    """One model on one suite."""

    suite: SuiteResult | None
    base: Change | None = None
    previous: Change | None = None
    """None as well where the stage before is the base itself"""


@dataclass(frozen=True)
class Row:
    """A model's row in the table of gain and loss."""

    name: str
    kind: str
    status: str
    previous: str
    cells: Mapping[str, Cell]
    """by suite"""
    average: float | None


@dataclass(frozen=True)
class Summary:
    """A number over the whole table, and what it means."""

    title: str
    meaning: str
    value: float | None
    """share, or a multiple"""
    is_multiple: bool = False


_AVERAGE = ("Average accuracy", "The mean over all suites that are measured in per cent.")
_SUMMARIES = {
    "backward_transfer": (
        "Backward transfer",
        "Mean change of the suites from when they were learned (those to keep: from the base) to the last model. "
        "Below zero something was lost.",
    ),
    "forward_transfer": (
        "Forward transfer",
        "Mean change against the base that suites had before the stage that trains them. Above zero earlier stages "
        "helped.",
    ),
    "performance_maintenance": (
        "Performance maintenance",
        "Mean change of the suites since they were learned, over all later models.",
    ),
    "forgetting": ("Forgetting", "Mean fall of the suites from their best earlier value to the last model's."),
    "backward_contrast": (
        "Backward transfer, as a contrast",
        "Mean of (after - before) / (after + before) of the suites learned before, around the learning of each other "
        "one.",
    ),
    "forward_contrast": (
        "Forward transfer, as a contrast",
        "The same for the suites that are still to be learned.",
    ),
    "intransigence": (
        "Intransigence",
        "Mean of what a model made from the base by one suite's data alone reaches, minus what the stage reached that "
        "learned the suite among others.",
    ),
    "relative_performance": (
        "Relative performance",
        "Mean likelihood of what was learned while it was learned, as a multiple of a model's that learned it alone.",
    ),
    "sample_efficiency": (
        "Sample efficiency",
        "How high and how soon learning came to its best, as a multiple of a model's that learned it alone.",
    ),
}
_MULTIPLES = {"relative_performance", "sample_efficiency"}


@dataclass(frozen=True)
class GainTable:
    """The whole table of gain and loss."""

    suites: tuple[SuiteResult, ...]
    """the columns, what should be gained first; values of any one model"""
    rows: tuple[Row, ...]
    summaries: tuple[Summary, ...]

    @property
    def has_averages(self) -> bool:
        return any(row.average is not None for row in self.rows)

    def parts(self) -> list[tuple[SuiteResult, ...]]:
        """Return the columns in even parts that each fit on a page."""
        num_parts = max(1, math.ceil(len(self.suites) / MAX_SUITES_ACROSS))
        bounds = [part * len(self.suites) // num_parts for part in range(num_parts + 1)]
        return [self.suites[start:end] for start, end in itertools.pairwise(bounds)]


def gain_table(run: RunRecord) -> GainTable:
    """Return the base, the few-shot arm and every stage that makes a model, against every suite."""
    suites: dict[str, SuiteResult] = {}
    for results in (run.base.suites, run.few_shot, *(stage.suites for stage in run.stages)):
        for label, suite in results.items():
            suites.setdefault(label, suite)
    order = {str(label): index for index, label in enumerate(run.matrix.get("columns") or [])}
    columns = sorted(suites.values(), key=lambda suite: (suite.role != "gain", order.get(suite.label, len(order))))
    averages = mapping(run.matrix.get("average_accuracy"))

    def row(name: str, kind: str, status: str, previous: str, results: Mapping[str, SuiteResult]) -> Row:
        cells = {suite.label: _cell(results.get(suite.label), previous) for suite in columns}
        return Row(name, kind, status, previous, cells, to_float(averages.get(name)))

    rows = [row("base", "untuned", "done", "", run.base.suites)]
    if run.few_shot:
        rows.append(row(FEW_SHOT, "base with worked examples in its prompt", "done", "", run.few_shot))
    rows += [
        row(stage.name, stage.kind, stage.status, stage.previous, stage.suites)
        for stage in run.stages
        if stage.suites or stage.status != "done"
    ]
    summaries = [Summary(*_AVERAGE, None)] if any(row.average is not None for row in rows) else []
    for name, (title, meaning) in _SUMMARIES.items():
        value = to_float(run.matrix.get(name))
        if value is not None:
            summaries.append(Summary(title, meaning, value, name in _MULTIPLES))
    return GainTable(tuple(columns), tuple(rows), tuple(summaries))


def _cell(suite: SuiteResult | None, previous: str) -> Cell:
    if suite is None:
        return Cell(None)
    return Cell(
        suite, suite.changes.get("base"), suite.changes.get("previous") if previous not in ("", "base") else None
    )


def comparisons(table: GainTable, run: RunRecord) -> Iterator[tuple[str, SuiteResult, str, Change]]:
    """Yield every comparison that was made: model, suite, what with, change."""
    for row in table.rows:
        for suite in table.suites:
            result = row.cells[suite.label].suite
            if result is None:
                continue
            for against, change in result.changes.items():
                if against == "previous" and row.previous in ("", "base"):
                    continue
                name = {"few_shot": FEW_SHOT, "previous": row.previous}.get(against, against)
                yield row.name, result, name, change


def headline(table: GainTable) -> str:
    """Return what the last measured stage gained and lost against the base, in a sentence or two."""
    measured = [row for row in table.rows[1:] if row.name != FEW_SHOT and any(cell.base for cell in row.cells.values())]
    if not measured:
        return ""
    last = measured[-1]
    sentences = []
    for role, verb in (("gain", "to gain"), ("keep", "to keep")):
        verdicts: dict[str, list[str]] = {}
        for suite in table.suites:
            cell = last.cells[suite.label]
            if suite.role == role and cell.base is not None:
                verdicts.setdefault(cell.base.verdict, []).append(suite.label)
        total = sum(map(len, verdicts.values()))
        if not total:
            continue
        parts = [_verdict_part(verdict, verdicts.get(verdict, [])) for verdict in ("better", "worse", "same")]
        rest = total - sum(len(verdicts.get(verdict, [])) for verdict in ("better", "worse", "same"))
        if rest:
            parts.append(f"{rest} not decided")
        sentences.append(f"of {fmt.plural(total, 'suite')} {verb}, {fmt.words([part for part in parts if part])}")
    return f"{last.name} against the base: {'; '.join(sentences)}."


def _verdict_part(verdict: str, labels: Sequence[str]) -> str:
    if not labels:
        return ""
    named = f" ({', '.join(labels)})" if verdict == "worse" and len(labels) <= 4 else ""
    return f"{len(labels)} {'the same' if verdict == 'same' else verdict}{named}"


@dataclass(frozen=True)
class Answer:
    """One model's output for a prompt."""

    name: str
    output: str
    is_right: bool | None
    score: str


@dataclass(frozen=True)
class SampleView:
    """A prompt, what was expected, and what every model answered."""

    prompt: str
    expected: str
    answers: tuple[Answer, ...]
    flip: str
    """`lost` (was right, now wrong), `won`, or nothing"""


@dataclass(frozen=True)
class SampleGroup:
    """The samples of one suite."""

    suite: SuiteResult
    samples: tuple[SampleView, ...]
    num_left_out: int


def sample_groups(run: RunRecord, table: GainTable) -> list[SampleGroup]:
    """Return samples for each suite: those that flipped between base and last stage first."""
    limit = max(2, min(MAX_SAMPLES_OF_SUITE, MAX_SAMPLES // max(1, len(table.suites))))
    groups = []
    for suite in table.suites:
        found: dict[tuple[str, str], dict[str, SampleOutput]] = {}
        arms = [("base", run.base.suites), *((stage.name, stage.suites) for stage in run.stages)]
        for name, results in arms:
            if suite.label in results:
                for sample in results[suite.label].samples:
                    found.setdefault((sample.prompt, sample.expected), {}).setdefault(name, sample)
        views = [_sample_view(suite, *key, outputs) for key, outputs in found.items()]
        views.sort(key=lambda view: ("lost", "won", "").index(view.flip))
        if views:
            groups.append(SampleGroup(suite, tuple(_balanced(views, limit)), max(0, len(views) - limit)))
    return groups


def _sample_view(suite: SuiteResult, prompt: str, expected: str, outputs: Mapping[str, SampleOutput]) -> SampleView:
    answers = [
        Answer(
            name,
            sample.output,
            sample.score > 0.5 if suite.is_judged and sample.score is not None else None,
            ""
            if suite.is_judged
            else fmt.number(sample.score, "nats per token" if suite.unit != "number" else "number"),
        )
        for name, sample in outputs.items()
    ]
    first, last = answers[0].is_right, answers[-1].is_right
    flip = "" if first is None or last is None or first == last else "won" if last else "lost"
    return SampleView(prompt, expected, tuple(answers), flip)


def _balanced(views: Sequence[SampleView], limit: int) -> list[SampleView]:
    """Return lost ones first, but never so many that nothing won (or unchanged) is seen."""
    lost = [view for view in views if view.flip == "lost"]
    others = [view for view in views if view.flip != "lost"]
    num_lost = max(limit - len(others), min(len(lost), (limit + 1) // 2))
    return [*lost[:num_lost], *others][:limit]


@dataclass(frozen=True)
class CostRow:
    """What a stage cost; None where it does not apply."""

    name: str
    steps: float | None
    tokens: float | None
    supervised_tokens: float | None
    flops: float | None
    seconds: float | None
    measure_seconds: float | None
    peak_memory_bytes: float | None
    trainable_parameters: float | None
    parameters: float | None


def cost_rows(run: RunRecord) -> list[CostRow]:
    """Return one row for the base and each stage, and a total where there is more than one."""
    rows = [_cost_row(stage) for stage in (run.base, *run.stages) if stage.cost or stage.measure_seconds is not None]
    if len(rows) > 1:
        rows.append(
            CostRow(
                "total",
                _total([row.steps for row in rows]),
                _total([row.tokens for row in rows]),
                _total([row.supervised_tokens for row in rows]),
                _total([row.flops for row in rows]),
                _total([row.seconds for row in rows]),
                _total([row.measure_seconds for row in rows]),
                max((row.peak_memory_bytes for row in rows if row.peak_memory_bytes is not None), default=None),
                None,
                None,
            )
        )
    return rows


def _cost_row(stage: StageRecord) -> CostRow:
    def cost(name: str) -> float | None:
        return to_float(stage.cost.get(name))

    return CostRow(
        stage.name,
        cost("steps"),
        cost("tokens"),
        cost("supervised_tokens"),
        cost("flops"),
        cost("seconds"),
        stage.measure_seconds,
        cost("peak_memory_bytes"),
        stage.detail("trainable_parameters"),
        stage.detail("parameters"),
    )


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) if known else None


def total_seconds(run: RunRecord) -> float | None:
    """Return how long the stages and their measuring took together."""
    rows = cost_rows(run)
    return _total([seconds for row in rows if row.name != "total" for seconds in (row.seconds, row.measure_seconds)])


def describe_stage(stage: StageRecord) -> list[str]:
    """Return what a stage does in short lines: its methods, then its data."""
    settings = stage.settings
    lines: list[str] = []
    if stage.kind == "train":
        lines.append(fmt.method(settings["tune"]) if settings.get("tune") else "")
        facts = [fmt.method(settings[axis], 0) for axis in ("objective", "optimizer") if settings.get(axis)]
        lr = to_float(settings.get("lr")) or stage.detail("lr")
        facts += [f"lr {lr:.3g}"] if lr else []
        lengths = [(to_float(settings.get(name)), name) for name in ("steps", "epochs", "tokens")]
        facts += [f"{length:,.9g} {name if length != 1 else name[:-1]}" for length, name in lengths if length]
        lines.append(", ".join(facts))
        retain = settings.get("retain") or []
        lines += [f"retain {fmt.method(item)}" for item in (retain if isinstance(retain, list) else [retain])]
    else:
        method = settings.get("method")
        lines.append(fmt.method(method) if method else "")
        plain = {
            key: value
            for key, value in settings.items()
            if isinstance(value, str | int | float) and key != "method" and value not in stage.models
        }
        lines.append(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in list(plain.items())[:4]))
    if stage.sources:
        lines.append(f"data {', '.join(stage.sources)}")
    return [line for line in lines if line]


def other_details(stage: StageRecord) -> dict[str, Any]:
    """Return what a stage reports beyond what has a place of its own on the page."""
    return {key: value for key, value in stage.details.items() if key not in _KNOWN_DETAILS}
