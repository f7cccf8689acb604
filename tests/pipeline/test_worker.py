"""What is taken of a finished run for a comparison: of its last model, and of all that was spent on the way there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from temper.core.errors import SettingError
from temper.pipeline.result import Run
from temper.pipeline.worker import numbers

SUITE = {"role": "gain", "metric": "exact match", "unit": "share", "higher_is_better": True}


def finished(folder: Path, **stages: dict[str, Any]) -> Run:
    """Leave the records of a run whose stages have `kind`, `record`, `suites` and the bytes that they `made`."""
    entries = []
    for name, stage in stages.items():
        own = folder / f"{name}-key"
        (own / "delta").mkdir(parents=True)
        (own / "delta" / "weights").write_bytes(b"x" * stage.get("made", 0))
        (own / "stage.json").write_text(json.dumps(stage.get("record", {})))
        (own / "measure.json").write_text(json.dumps({"suites": stage.get("suites", {})}))
        entries.append({"name": name, "kind": stage["kind"], "key": "key", "folder": own.name})
    (folder / "run.json").write_text(json.dumps({"name": "mine", "stages": entries, "recipe": {}, "matrix": None}))
    return Run(folder)


def cost(**numbers: float) -> dict[str, Any]:
    return {"cost": {"steps": 2, "tokens": 50, "flops": 1e3, **numbers}}


def test_costs_are_those_of_the_way_and_values_those_of_its_end(tmp_path: Path) -> None:
    first = cost(seconds=3.0, attach_seconds=0.5, start_memory_bytes=100, peak_memory_bytes=160)
    second = cost(seconds=4.0, start_memory_bytes=100, peak_memory_bytes=130)
    run = finished(
        tmp_path,
        base={"kind": "base", "suites": {"a": {**SUITE, "value": 0.25}, "b": {**SUITE, "value": 0.5}}},
        chosen={"kind": "select", "record": {"cost": {"seconds": 1.0}}},
        one={"kind": "train", "record": {**first, "details": {"trainable_parameters": 7}}, "made": 9,
             "suites": {"a": {**SUITE, "value": 0.9}}},
        two={"kind": "train", "made": 11,
             "record": {**second, "warnings": ["said"], "details": {"trainable_parameters": 5}},
             "suites": {"a": {**SUITE, "value": 0.75}, "only here": {**SUITE, "value": 1.0}}},
        checked={"kind": "evaluate", "suites": {"c": {**SUITE, "value": 0.1}}},
    )  # fmt: skip
    found = numbers(run)
    assert found["suites"] == {"a": {**SUITE, "value": 0.75, "base": 0.25}}
    assert found["seconds"] == 3.0 + 0.5 + 4.0 + 1.0 and found["flops"] == 2e3
    assert (found["tokens"], found["steps"]) == (100, 4)
    assert (found["memory_bytes"], found["peak_memory_bytes"]) == (60, 160)
    assert found["trained"] == 7 and found["delta_bytes"] == 11
    assert found["warnings"] == ["said"]


def test_a_run_without_a_measured_model_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path, base={"kind": "base"}, out={"kind": "export"})
    with pytest.raises(SettingError, match=r"stages: \['out'\] makes no model that is measured"):
        numbers(run)
