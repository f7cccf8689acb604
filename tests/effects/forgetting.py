"""What the studies of forgetting share: `tiny`, which knows seven skills, learns another; what is left of the seven?

- `after`: all of it trains and something retains; exact match after a short training on `reverse`.
- `learnt` and `relearnt`: something else than all of it trains; losses after a longer training on `sort_descending`,
  and answers that are wrong after one on what it knows, in which nothing is to be forgotten: the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from effects.bench import Bench
from effects.study import Contrast
from temper.core.schedule import Moment
from temper.retain.importance import Consolidation

NEW = "reverse"
SLOW = "sort_descending"
UNIT = (
    f"held-out loss in nats per token of {SLOW} (new) and of the base's skills (kept); arms named wrong: answers in "
    "per cent; less is better"
)
"""of the numbers of `learnt` and `relearnt`"""


class Dealt(Consolidation):
    """An anchor whose importances are dealt to other numbers of the same matrix."""

    def before_step(self, moment: Moment) -> None:
        is_first = self.importances is None
        super().before_step(moment)
        if is_first and self.importances is not None:
            generator = torch.Generator().manual_seed(0)
            self.importances = [
                each.flatten()[torch.randperm(each.numel(), generator=generator)].view_as(each)
                for each in self.importances
            ]


def after(bench: Bench, *retain: Any, lr: float = 1e-3, steps: int = 40) -> tuple[float, float]:
    """Return exact match in per cent on the new skill and on the seven old ones, after learning the new one."""
    model = bench.trained(NEW, "tiny", 640, tune="full", retain=retain, lr=lr, steps=steps, batch_size=16)
    return bench.accuracy(model, NEW, 60), bench.accuracy(model, bench.known("tiny"), 15)


def learnt(bench: Bench, name: str, tune: Any, lr: float, steps: int = 60) -> dict[str, float]:
    """Return the arm's loss on the new skill and on the seven old ones, after learning the new one."""
    model = bench.trained(SLOW, "tiny", tune=tune, lr=lr, steps=steps)
    return {f"{name}: new": bench.loss(model, SLOW), f"{name}: kept": bench.loss(model, bench.known("tiny"), 60)}


def relearnt(bench: Bench, name: str, tune: Any, lr: float, steps: int = 40) -> dict[str, float]:
    """Return the arm's wrong answers on the seven old skills, in per cent, after training on these."""
    known = bench.known("tiny")
    model = bench.trained(known, "tiny", 128, tune=tune, lr=lr, steps=steps)
    return {_wrong(name): 100 - bench.accuracy(model, known, 30)}


def nothing_to_forget(of: str, against: str) -> Contrast:
    """Return the control: two arms of `relearnt`."""
    return Contrast("where nothing is to be forgotten", _wrong(of), _wrong(against), "none")


def _wrong(name: str) -> str:
    return f"{name} on known skills: wrong"


def sources(skills: Sequence[str], bench: Bench) -> list[dict[str, Any]]:
    """Return lab sources of skills."""
    return [{"lab": {"skill": skill, "num": 256, "seed": bench.seed}} for skill in skills]


def told(outcomes: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Return arms: each outcome's new skill, and its old ones."""
    news = {f"new, {name}": new for name, (new, _) in outcomes.items()}
    return {**news, **{f"old, {name}": old for name, (_, old) in outcomes.items()}}
