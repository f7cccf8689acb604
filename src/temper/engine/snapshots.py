"""Keep what trains, and the optimizer's numbers, at moments spread evenly over a stage (`signals.trajectory`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from temper.core.methods import Live
from temper.core.schedule import Moment
from temper.signals.trajectory import FOLDER, write_snapshot

Training = tuple[Sequence[tuple[str, nn.Parameter]], torch.optim.Optimizer]


class Snapshots(Live):
    """Takes `num` snapshots: after the step with which each of `num` equal parts of the stage is over.

    A part that is shorter than a step gets none.
    """

    def __init__(self, num: int, folder: Path, facts: dict[str, Any]) -> None:
        self.num, self.folder, self.facts = num, folder / FOLDER, facts
        self.taken = 0
        self.lrs: list[float] = []
        """of the steps since the last snapshot"""
        self.step = 0

    def watch(self, training: Callable[[], Training]) -> None:
        """Tell it where to ask what is trained, and by what."""
        self.training = training

    def before_step(self, moment: Moment) -> None:
        if int(moment.progress * self.num) > self.taken:
            self._take(int(moment.progress * self.num))

    def after_step(self, moment: Moment) -> None:
        self.lrs.append(float(self.training()[1].param_groups[0]["lr"]))
        self.step = moment.step + 1

    def after_training(self) -> None:
        """Take the last one: the stage is over."""
        if self.lrs:
            self._take(self.num)

    def _take(self, number: int) -> None:
        self.taken = number
        facts = {**self.facts, "step": self.step, "lr": sum(self.lrs) / len(self.lrs)}
        self.folder.mkdir(exist_ok=True)
        write_snapshot(self.folder / f"{number:04d}", *self.training(), facts)
        self.lrs = []

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "lrs": list(self.lrs), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.lrs, self.step = state["taken"], list(state["lrs"]), state["step"]
