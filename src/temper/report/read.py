"""A run folder as records: whatever the moment at which the run stopped.

Decisions: a file that is not there, a half-written last line and a missing key are states of a run and read as
"not there yet"; only a folder without `run.json` is refused. Text is cleaned once, here: control characters, those
that turn the direction of writing, and lone surrogates are spelled (`\\x1b`), so that every string can be written as
UTF-8 and nothing on the page is hidden or turned round.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from temper.core.errors import DataError

Status = Literal["done", "failed", "stopped", "not started"]
MAX_BAD_ROWS_SHOWN = 12

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Change:
    """How a value differs from another model's on the same examples; 95 % paired bootstrap interval."""

    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    negative_flips: int | None
    positive_flips: int | None
    num_examples: int | None


@dataclass(frozen=True)
class SampleOutput:
    """What one model answered to one prompt."""

    prompt: str
    expected: str
    output: str
    score: float | None


@dataclass(frozen=True)
class SuiteResult:
    """One model on one suite."""

    label: str
    role: str
    metric: str
    unit: str
    higher_is_better: bool
    value: float | None
    low: float | None
    high: float | None
    num_examples: int | None
    num_left_out: int
    """examples that could not be asked"""
    is_judged: bool
    """each example is right or wrong"""
    samples: tuple[SampleOutput, ...]
    changes: Mapping[str, Change]
    """by what it is compared with: `base`, `few_shot`, `previous`"""


@dataclass(frozen=True)
class Quarantine:
    """Rows put aside."""

    num_rows: int = 0
    reasons: tuple[tuple[str, int], ...] = ()
    """with their counts, most frequent first"""
    rows: tuple[Mapping[str, Any], ...] = ()
    """the first few"""


@dataclass(frozen=True)
class StageRecord:
    """One stage: the recipe's part of it and, as far as it got, what it left."""

    name: str
    kind: str
    key: str
    previous: str
    models: tuple[str, ...]
    data: tuple[str, ...]
    """stages whose rows it reads"""
    sources: tuple[str, ...]
    """labels of all that it reads, those stages included"""
    status: Status
    settings: Mapping[str, Any]
    """as resolved"""
    record: Mapping[str, Any]
    """`stage.json`"""
    suites: Mapping[str, SuiteResult]
    metrics: Mapping[str, list[float | None]] = field(default_factory=dict)
    """columns of `metrics.jsonl`, one entry for each step; None where a step has no such number"""
    quarantine: Quarantine = field(default_factory=Quarantine)
    measure_seconds: float | None = None
    started: str = ""
    warnings: tuple[str, ...] = ()
    error: str = ""

    def detail(self, name: str) -> float | None:
        """Return a number that the stage reported, None where it did not."""
        return to_float(self.details.get(name))

    @property
    def num_bad_rows(self) -> float | None:
        counted = self.detail("bad_rows")
        return counted if counted is not None else self.quarantine.num_rows or None

    @property
    def fingerprints(self) -> Mapping[str, Any]:
        """Of the data it read, by label."""
        return mapping(self.record.get("sources"))

    @property
    def cost(self) -> Mapping[str, Any]:
        return mapping(self.record.get("cost"))

    @property
    def details(self) -> Mapping[str, Any]:
        return mapping(self.record.get("details"))


@dataclass(frozen=True)
class RunRecord:
    """A whole run."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    source: str
    command: str
    started: str
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    git: Mapping[str, Any]
    warnings: tuple[str, ...]
    error: str
    base: StageRecord
    few_shot: Mapping[str, SuiteResult]
    stages: tuple[StageRecord, ...]
    matrix: Mapping[str, Any]

    @property
    def is_complete(self) -> bool:
        return all(stage.status == "done" for stage in self.stages)


def read_run(folder: Path) -> RunRecord:
    """Read what a run has left so far.

    Raises:
        DataError: the folder holds no readable `run.json`.
    """
    run = _read_json(folder / "run.json")
    if not run:
        raise DataError(
            folder / "run.json", None, "is not there or not readable", "give the folder of a run (runs/<recipe>)"
        )
    recipe = mapping(run.get("recipe"))
    written = {str(item.get("name")): item for item in map(mapping, _list(recipe.get("stages")))}
    entries = [mapping(entry) for entry in _list(run.get("stages"))]
    base_entry = next((entry for entry in entries if entry.get("name") == "base"), {})
    base_folder = _base_folder(folder, base_entry)
    base = _read_stage(folder, {"name": "base", "kind": "base", "folder": base_folder, **base_entry}, {})
    few_shot = mapping(_read_json(folder / base_folder / "measure.json").get("few_shot")) if base_folder else {}
    return RunRecord(
        name=str(run.get("name") or folder.name),
        folder=folder,
        recipe=recipe,
        source=str(run.get("source") or ""),
        command=_command(run.get("command")),
        started=str(run.get("started") or ""),
        versions=mapping(run.get("versions")),
        machine=mapping(run.get("machine")),
        git=mapping(run.get("git")),
        warnings=tuple(str(text) for text in _list(run.get("warnings"))),
        error=str(run.get("error") or ""),
        base=base,
        few_shot=_suites(few_shot),
        stages=tuple(
            _read_stage(folder, entry, mapping(written.get(str(entry.get("name")))))
            for entry in entries
            if entry.get("name") != "base"
        ),
        matrix=mapping(run.get("matrix")),
    )


def _base_folder(folder: Path, entry: Mapping[str, Any]) -> str:
    if entry.get("folder"):
        return str(entry["folder"])
    found = [
        path for path in folder.glob("base-*") if (path / "measure.json").exists() or (path / "stage.json").exists()
    ]
    return max(found, key=lambda path: path.stat().st_mtime).name if found else ""


def _read_stage(run_folder: Path, entry: Mapping[str, Any], written: Mapping[str, Any]) -> StageRecord:
    name, kind = str(entry.get("name")), str(entry.get("kind") or "")
    folder = run_folder / str(entry.get("folder") or f"{name}-{entry.get('key')}")
    record = _read_json(folder / "stage.json")
    measured = _read_json(folder / "measure.json")
    metrics = _columns(folder / "metrics.jsonl")
    has_begun = bool(record) or (folder.is_dir() and any(folder.iterdir()))
    known: dict[str, Status] = {"done": "done", "failed": "failed"}
    return StageRecord(
        name=name,
        kind=kind or str(record.get("kind") or ""),
        key=str(entry.get("key") or record.get("key") or ""),
        previous=str(entry.get("previous") or ""),
        models=tuple(str(model) for model in _list(entry.get("models"))),
        data=tuple(str(stage) for stage in _list(entry.get("data"))),
        sources=tuple(str(source) for source in _list(entry.get("sources"))),
        status=known.get(str(record.get("status")), "stopped" if has_begun else "not started"),
        settings=mapping(record.get("settings")) or mapping(written.get(kind)),
        record=record,
        suites=_suites(mapping(measured.get("suites"))),
        metrics=metrics,
        quarantine=_quarantine(folder / "quarantine.jsonl"),
        measure_seconds=to_float(measured.get("seconds")),
        started=str(record.get("started") or ""),
        warnings=tuple(str(text) for text in _list(record.get("warnings"))),
        error=str(record.get("error") or ""),
    )


def _suites(written: Mapping[str, Any]) -> dict[str, SuiteResult]:
    return {str(label): _suite(str(label), mapping(suite)) for label, suite in written.items()}


def _suite(label: str, suite: Mapping[str, Any]) -> SuiteResult:
    return SuiteResult(
        label=label,
        role=str(suite.get("role") or "keep"),
        metric=str(suite.get("metric") or ""),
        unit=str(suite.get("unit") or "number"),
        higher_is_better=bool(suite.get("higher_is_better", True)),
        value=to_float(suite.get("value")),
        low=to_float(suite.get("low")),
        high=to_float(suite.get("high")),
        num_examples=_int(suite.get("num_examples")),
        num_left_out=_int(suite.get("num_left_out")) or 0,
        is_judged=bool(suite.get("correct")),
        samples=tuple(
            SampleOutput(
                prompt=_text(sample.get("prompt")),
                expected=_text(sample.get("expected")),
                output=_text(sample.get("output")),
                score=to_float(sample.get("score")),
            )
            for sample in map(mapping, _list(suite.get("samples")))
        ),
        changes={
            str(against): Change(
                difference=to_float(change.get("difference")),
                low=to_float(change.get("low")),
                high=to_float(change.get("high")),
                verdict=str(change.get("verdict") or "unknown"),
                negative_flips=_int(change.get("negative_flips")),
                positive_flips=_int(change.get("positive_flips")),
                num_examples=_int(change.get("num_examples")),
            )
            for against, change in ((key, mapping(value)) for key, value in mapping(suite.get("changes")).items())
        },
    )


def _columns(path: Path) -> dict[str, list[float | None]]:
    """Read `metrics.jsonl` as columns; of a step written twice (before and after a kill) the later line counts."""
    steps: dict[float, Mapping[str, Any]] = {}
    for number, line in enumerate(_json_lines(path), 1):
        step = to_float(line.get("step"))
        steps[step if step is not None and math.isfinite(step) else number] = line
    rows = [{**row, "step": step} for step, row in sorted(steps.items())]
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value))
    return {clean(name): [to_float(row.get(name)) for row in rows] for name in names}


def _quarantine(path: Path) -> Quarantine:
    reasons: Counter[str] = Counter()
    rows: list[Mapping[str, Any]] = []
    for row in map(clean, _json_lines(path)):
        reasons[_text(row.get("reason")) or "no reason given"] += 1
        if len(rows) < MAX_BAD_ROWS_SHOWN:
            rows.append(row)
    return Quarantine(reasons.total(), tuple(reasons.most_common()), tuple(rows))


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # the line at which a kill fell
            if isinstance(value, dict):
                yield value


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise DataError(path, None, f"is not JSON: {error}", "delete the stage's folder and run again") from error
    return mapping(clean(value))


def clean(value: Any) -> Any:
    """Return a JSON value in which every text can be written and seen."""
    if isinstance(value, str):
        return _UNSEEN.sub(_spelled, value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _command(value: object) -> str:
    return shlex.join(str(part) for part in value) if isinstance(value, list) else str(value or "")


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def to_float(value: object) -> float | None:
    """Return a JSON number as float (NaN and infinities stay), None for anything else."""
    return float(value) if _is_number(value) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _int(value: object) -> int | None:
    number = to_float(value)
    return int(number) if number is not None and math.isfinite(number) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
