"""Gates: a stage that loses more than it may stops the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from temper.core.errors import GateError, SettingError, nearest
from temper.measure.base import Unit
from temper.measure.report import SuiteReport

ROUNDING = 1e-9


def check_gate(
    gate: float | Mapping[str, float],
    reports: Mapping[str, SuiteReport],
    against: Literal["base", "previous"] = "previous",
    *,
    suites: Mapping[str, float] | None = None,
    key: str = "gate",
) -> None:
    """Stop when a suite fell by more than is allowed.

    A fall is a change for the worse of the value itself, not of its interval: points of a share (0.05 for 5 points),
    nats per token, or a function's own unit; for perplexity, a share of the other model's value (0.05 for 5 %).

    Args:
        gate: the fall allowed to every kept suite, or to single suites of either role by label.
        reports: the stage's suites, compared with `against`.
        against: which model is compared with.
        suites: other limits for single suites, by label.
        key: the setting's dotted path, for messages.

    Raises:
        GateError: every suite that fell too far, with its values and what is allowed.
        SettingError: a label that names no suite, or nothing to compare with.
    """
    named = dict(gate) if isinstance(gate, Mapping) else dict(suites or {})
    for label in named:
        if label not in reports:
            raise SettingError(f"{key}.suites.{label}", named[label], "limits no suite", nearest(label, reports))
    kept = [label for label, report in reports.items() if report["role"] == "keep"]
    allowed = {} if isinstance(gate, Mapping) else dict.fromkeys(kept, gate)
    failures = []
    for label, limit in {**allowed, **named}.items():
        report = reports[label]
        if against not in report["changes"]:
            raise SettingError(f"{key}.against", against, f"has no value of {label}", "compare with the base")
        if report["unit"] == "share" and limit > 1:
            fix = "a share falls by 1 at most: write 0.05 for 5 points"
            raise SettingError(
                key if label not in named else f"{key}.suites.{label}", limit, f"never stops {label}", fix
            )
        fall, before = _fall(report, against)
        if fall > limit + ROUNDING:
            change = report["changes"][against]
            failures.append(
                f"{label} ({report['metric']}) went from {_shown(before, report['unit'])} to "
                f"{_shown(report['value'], report['unit'])}, {_shown_fall(fall, report['unit'])} worse than the "
                f"{against} model where {_shown_fall(limit, report['unit'])} is allowed (95 % interval of the "
                f"difference {_shown(change['low'], report['unit'])} to {_shown(change['high'], report['unit'])})"
            )
    if failures:
        raise GateError(
            f"{key}: {'; '.join(failures)}. To go on, train more gently (a lower lr, fewer steps), keep more (retain: "
            f"replay), or raise {key}"
        )


def _fall(report: SuiteReport, against: str) -> tuple[float, float]:
    """Return by how much the value is worse, and the other model's value."""
    difference = report["changes"][against]["difference"]
    before = report["value"] - difference
    worse = -difference if report["higher_is_better"] else difference
    return (worse / before if report["unit"] == "perplexity" else worse), before


def _shown(value: float, unit: Unit) -> str:
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.4g}"


def _shown_fall(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{100 * value:.1f} points"
    return f"{100 * value:.1f} %" if unit == "perplexity" else f"{value:.4g}" + (f" {unit}" if "nats" in unit else "")
