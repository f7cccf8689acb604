"""What the studies of retention share: a base that knows seven skills learns another, and what is left of the seven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effects.bench import Bench

NEW = "reverse"


def after(bench: Bench, *retain: Any, lr: float = 1e-3, steps: int = 40) -> tuple[float, float]:
    """Return exact match in per cent on the new skill and on the seven old ones, after learning the new one."""
    model = bench.base("tiny")
    bench.fit(model, bench.rows(NEW, 640), tune="full", retain=retain, lr=lr, steps=steps, batch_size=16)
    return bench.accuracy(model, NEW, 60), bench.accuracy(model, bench.known("tiny"), 15)


def sources(skills: Sequence[str], bench: Bench) -> list[dict[str, Any]]:
    """Return lab sources of skills."""
    return [{"lab": {"skill": skill, "num": 256, "seed": bench.seed}} for skill in skills]


def told(outcomes: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Return arms: each outcome's new skill, and its old ones."""
    news = {f"new, {name}": new for name, (new, _) in outcomes.items()}
    return {**news, **{f"old, {name}": old for name, (_, old) in outcomes.items()}}
