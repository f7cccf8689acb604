"""Skill-It: sources whose skills, and those that build on them, are not yet learnt are drawn more.

Legend: S sources (skills), R rounds of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, model_validator

from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.mix.base import Mix, Mixing, Sources


class SkillIt(Mix, name="skill_it"):
    """Draw from skill i by how much loss is left on the skills j that training on i helps, updated online.

    p_1^i ~ exp(eta sum_j A_ij), and after every `every_steps` steps, t = 1, 2, ...:
    p_(t+1)^i ~ exp(eta sum_(tau = t-w+1)^t sum_j A_ij L_j(f_tau)), with A the `graph` of skills (A_ij > 0 where
    training on skill i helps skill j), L_j(f_tau) the validation loss on skill j of the model after round tau, w the
    `window` and eta the `eta`. A skill is a source of the stage; rows held out of each are its validation set.

    Paper: Skill-it! A Data-Driven Skills Framework for Understanding and Training Language Models, arXiv:2307.14430,
    algorithm 1.
    Deviation: the graph is given and not estimated; a skill that is no target has a column of zeros in it, where the
    paper leaves the column out. Skills are evaluated on held-out rows of the stage's own sources only.
    Deviation: sources are drawn in exact proportion at any step; the paper samples. Losses of the window are summed as
    in the algorithm; the authors' code takes their mean where only some skills are targets.
    """

    example: ClassVar[dict[str, Any]] = {"every_steps": 1, "num_validation": 4}

    graph: tuple[tuple[NonNegativeFloat, ...], ...] | None = Field(
        None,
        description="A: a list for each source, in their order, with its effect on each source; null: skills that do "
        "not help one another",
    )
    eta: float = Field(0.2, gt=0, description="eta: how strongly the losses (nats per token) move the weights")
    window: int = Field(3, ge=1, description="w: rounds whose losses count")
    every_steps: int = Field(50, ge=1, description="optimizer steps of a round, after which the weights are updated")
    num_validation: int = Field(32, ge=1, description="rows held out of each source to measure its loss")

    @property
    def num_held_out(self) -> int:
        return self.num_validation

    @model_validator(mode="after")
    def _square(self) -> Self:
        for number, row in enumerate(self.graph or ()):
            if len(row) != len(self.graph or ()):
                reason = f"has {len(row)} numbers in list {number + 1} of {len(self.graph or ())}"
                raise SettingError("graph", list(row), reason, "give as many lists as sources, each as long")
        return self

    def build(self, sources: Sources) -> Online:
        num = len(sources.sizes)
        if self.graph is not None and len(self.graph) != num:
            reason = f"is a graph of {len(self.graph)} skills for {num} sources"
            raise SettingError("mix.skill_it.graph", len(self.graph), reason, "give a list for each source in `data`")
        return Online(self, np.eye(num) if self.graph is None else np.asarray(self.graph, dtype=float), sources)


class Online(Mixing):
    """The weights now, and the losses from which they follow."""

    is_online = True

    def __init__(self, settings: SkillIt, graph_SS: NDArray[np.float64], sources: Sources) -> None:
        self.settings, self.graph_SS, self.sources = settings, graph_SS, sources
        self.losses_RS: list[list[float]] = []
        super().__init__(self._weights(np.ones(len(graph_SS))))

    def _weights(self, losses_S: NDArray[np.float64]) -> NDArray[np.float64]:
        exponent_S = self.settings.eta * (self.graph_SS @ losses_S)
        return np.asarray(np.exp(exponent_S - exponent_S.max()))

    def after_step(self, moment: Moment) -> None:
        if (moment.step + 1) % self.settings.every_steps:
            return
        self.losses_RS = [*self.losses_RS, self.sources.losses().tolist()][-self.settings.window :]
        weights_S = self._weights(np.asarray(self.losses_RS).sum(axis=0))
        self.weights_S = weights_S / weights_S.sum()

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses_RS, "weights": self.weights_S.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        losses: Sequence[Sequence[float]] = state["losses"]
        self.losses_RS = [list(row) for row in losses]
        self.weights_S = np.asarray(state["weights"])
