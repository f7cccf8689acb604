"""Merges, compressions and ports below the level of stages: changes of weights, held in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from effects.bench import Bench
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source
from temper.measure.base import Subject
from temper.merge.base import Combine, Merge
from temper.models.model import Model

Change = dict[str, Tensor]
"""what was done to each parameter, by its name"""


def change_of(tuned: Model, base: Model) -> Change:
    """Return what was done to a base to make a model."""
    old = dict(base.module.named_parameters())
    return {name: (new - old[name]).detach() for name, new in tuned.module.named_parameters()}


def learnt(bench: Bench, rows: Rows, base: str = "tiny", **settings: Any) -> Change:
    """Return what full tuning on rows does to a base."""
    model = bench.base(base)
    bench.fit(model, rows, **{"tune": "full", "lr": 1e-3, "steps": 40, **settings})
    return change_of(model, bench.base(base))


def shuffled(change: Mapping[str, Tensor], seed: int) -> Change:
    """Return a change with each tensor's entries in another order: as large, and without what was learnt."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=draw)].view_as(tensor)
        for name, tensor in change.items()
    }


class Workbench:
    """Where a merge method tries mixtures (`temper.merge.base.Bench`), with everything in memory."""

    on_bad_rows: OnBadRows = "stop"

    def __init__(self, bench: Bench, changes: Mapping[str, Mapping[str, Tensor]], base: str = "tiny") -> None:
        self.of: Sequence[str] = list(changes)
        self.seed, self.cache = bench.seed, bench.cache
        self.model = bench.base(base)
        self.names: Sequence[str] = [name for name, _ in self.model.module.named_parameters()]
        self._start = {name: value.detach().clone() for name, value in self.model.module.named_parameters()}
        self._changes = list(changes.values())

    def subject(self) -> Subject:
        return Subject(self.model)

    def base(self, name: str) -> Tensor:
        return self._start[name]

    def changes(self, name: str) -> list[Tensor]:
        return [change[name] for change in self._changes]

    def pour(self, combine: Combine) -> None:
        with torch.no_grad():
            for name, parameter in self.model.module.named_parameters():
                base = self.base(name)
                parameter.copy_(base + combine(name, base, self.changes(name)))
        self.model.is_changed = True

    def open(self, source: Source) -> Rows:
        return source.open("train", self.cache, self.on_bad_rows)

    def say(self, text: str) -> None:
        """Nobody listens."""


def merged(bench: Bench, method: object, changes: Mapping[str, Mapping[str, Tensor]], base: str = "tiny") -> Model:
    """Return a base with changes merged into it by a method, as it is written in a recipe."""
    workbench = Workbench(bench, changes, base)
    workbench.pour(Merge.parse(method).build(workbench).combine)
    return workbench.model
