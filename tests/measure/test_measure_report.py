"""Measuring a model: values, comparisons, the cache, and gates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from families import tiny
from measuring import add_noise, chain_model, write_rows
from temper.core.errors import GateError, ModelError, SettingError
from temper.measure.base import Score, Subject, Suite
from temper.measure.drift import Drift
from temper.measure.exact_match import ExactMatch
from temper.measure.gate import check_gate
from temper.measure.perplexity import Perplexity
from temper.measure.report import Measurement, SuiteReport, compare, measure_model, suite_report

ROWS = [{"prompt": f"{number}=", "completion": "ok" if number % 4 else "no"} for number in range(40)]
Suites = list[tuple[Suite, Any]]


def suites(folder: Path) -> Suites:
    path = write_rows(folder / "rows.jsonl", ROWS)
    return [
        (ExactMatch(source=path, examples=30), "gain"),  # type: ignore[arg-type]
        (Perplexity(source=path, name="surprise"), "keep"),  # type: ignore[arg-type]
        (Drift(texts=8, length=16), "keep"),
    ]


def measured(folder: Path) -> tuple[Measurement, Measurement]:
    base = chain_model(("=", "n", "o", "<eos>"))
    first = measure_model(base, suites(folder), folder, shots=2)
    second = measure_model(
        chain_model(("=", "o", "k", "<eos>")),
        suites(folder),
        folder,
        base_fingerprint=base.fingerprint,
        base_reports=first["suites"],
        few_shot_reports=first["few_shot"],
        previous_reports=first["suites"],
    )
    return first, second


def test_a_base_and_a_stage(tmp_path: Path) -> None:
    base, stage = measured(tmp_path)
    match = stage["suites"]["rows.jsonl"]
    assert list(base["few_shot"]) == ["rows.jsonl"] and "few_shot" not in stage
    assert set(base["suites"]["rows.jsonl"]["changes"]) == {"few_shot"}
    assert set(match["changes"]) == {"base", "few_shot", "previous"}
    right = sum(match["scores"])
    assert match["value"] == right / 30 and match["low"] < match["value"] < match["high"]
    change = match["changes"]["base"]
    assert (change["positive_flips"], change["negative_flips"]) == (right, 30 - right)
    assert change["difference"] == pytest.approx((2 * right - 30) / 30) and change["verdict"] == "better"
    drift = stage["suites"]["drift"]
    assert base["suites"]["drift"]["value"] == 0 and drift["changes"]["base"]["verdict"] == "worse"
    assert drift["changes"]["base"]["negative_flips"] is None
    assert json.loads(json.dumps(stage)) == stage


def test_a_suite_is_measured_once_for_all_that_it_follows_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    measure = Perplexity.measure

    def counted(suite: Perplexity, subject: Subject, cache: Path, seed: int = 0) -> Score:
        calls.append(suite.label)
        return measure(suite, subject, cache, seed)

    monkeypatch.setattr(Perplexity, "measure", counted)
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:6])
    one: Suite = Perplexity(source=path)  # type: ignore[arg-type]
    other: Suite = Perplexity(source=path, name="other")  # type: ignore[arg-type]
    model = tiny()

    def num_calls(model: Any, wanted: Sequence[Suite], **settings: Any) -> int:
        measure_model(model, [(suite, "keep") for suite in wanted], tmp_path, **settings)
        return len(calls)

    assert num_calls(model, [one]) == 1
    assert num_calls(model, [one]) == 1
    assert num_calls(model, [one, other]) == 2
    assert num_calls(add_noise(tiny(), 0.1), [one]) == 3
    assert num_calls(model, [one], seed=1) == 4
    assert num_calls(model, [one], model_key="another") == 5
    write_rows(tmp_path / "rows.jsonl", ROWS[:5])
    assert num_calls(model, [one]) == 6


def test_labels_must_differ(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="labels 2 suites; give one of them a `name`"):
        measure_model(tiny(), [(Drift(), "keep"), (Drift(), "keep")], tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 4000.0])
def test_numbers_that_are_none_stop_with_the_example(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drift, "measure", lambda *arguments: Score("m", True, (1.0, value), transform="exp"))
    with pytest.raises(ModelError, match=r"drift: (example 2 scores|the value is inf)"):
        measure_model(tiny(), [(Drift(), "keep")], tmp_path)


def pair(now: float, before: float, unit: str = "share", role: str = "keep") -> SuiteReport:
    """A suite that went from one value to another, the same for both of its two examples."""
    rises, transform = unit in ("share", "number"), "exp" if unit == "perplexity" else "mean"
    sides = [
        suite_report(Score("m", rises, (value, value), transform=transform, unit=unit), role, "s")  # type: ignore[arg-type]
        for value in (now, before)
    ]
    for against in ("base", "previous"):
        sides[0]["changes"][against] = compare(*sides)
    return sides[0]


def test_gates_measure_falls_in_each_suites_own_way() -> None:
    reports = {
        "share": pair(0.5, 0.6),
        "gained": pair(0.1, 0.9, role="gain"),
        "perplexity": pair(0.2, 0.1, "perplexity"),
        "drift": pair(0.3, 0.0, "nats per token"),
    }
    relative = 1.1051709 - 1  # e to 0.1
    for label, fall in {"share": 0.1, "perplexity": relative, "drift": 0.3, "gained": 0.8}.items():
        check_gate({label: fall + 1e-6}, reports)
        with pytest.raises(GateError, match=label):
            check_gate({label: fall - 1e-6}, reports)
    # A number is for kept suites alone.
    check_gate(0.31, reports, "base")
    with pytest.raises(GateError) as error:
        check_gate(0.101, reports, "base", suites={"drift": 1.0}, key="stages[0].gate")
    message = str(error.value)
    assert message.startswith("stages[0].gate: perplexity (m) went from 1.105 to 1.221, 10.5 % worse than the base")
    assert "share (" not in message and "drift (" not in message and "To go on" in message


def test_a_gate_that_falls_by_just_what_is_allowed_lets_through() -> None:
    check_gate(0.1, {"a": pair(0.7, 0.8)})  # 0.8 - 0.7 is 0.1 and a rounding
    check_gate(0.0, {"a": pair(0.7, 0.6)})


def test_gates_refuse_labels_and_comparisons_that_are_not_there() -> None:
    with pytest.raises(SettingError, match="did you mean 'lab/copy'"):
        check_gate({"lab/cpy": 0.1}, {"lab/copy": pair(1, 1)})
    with pytest.raises(SettingError, match=r"20 never stops s; a share falls by 1 at most: write 0\.05"):
        check_gate(20, {"s": pair(1, 1)})
    alone = pair(1, 1)
    alone["changes"] = {}
    with pytest.raises(SettingError, match=r"gate\.against"):
        check_gate(0.1, {"a": alone})
