"""What studies do with the lab: fresh bases, skills, trainings, and two measures.

Everything follows from the study's seed: the order of the data, the rows, the tuner's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from temper.data.encode import Encoder
from temper.data.example import Row
from temper.data.rows import Rows
from temper.engine.fit import FitSettings, Fitted, fit
from temper.lab.bases import BASES, open_base
from temper.lab.training import question, skill_named
from temper.models.generate import generate
from temper.models.model import Model
from temper.optim.base import Optim
from temper.signals.likelihood import example_logprobs
from temper.tune.base import Tune


@dataclass(frozen=True)
class Bench:
    """The lab, for one seed of one study."""

    seed: int
    cache: Path
    """where lab bases are kept"""

    def base(self, name: str = "nano") -> Model:
        """Return a fresh copy of a lab base: `nano` knows copy, shift and duplicate, `tiny` seven skills."""
        return open_base(name, self.cache)

    def rows(self, skills: str | Sequence[str], num: int = 1024, split: str = "train") -> Rows:
        """Return `num` questions of each skill, with their answers; the skill is in the column `task`."""
        return Rows.from_rows(list(self._questions(skills, num, split)), f"lab {skills} {split} {num} {self.seed}")

    def _questions(self, skills: str | Sequence[str], num: int, split: str) -> Iterable[Row]:
        for name in [skills] if isinstance(skills, str) else skills:
            skill = skill_named(name)
            yield from (question(skill, argument) for argument in skill.arguments(split, num, self.seed))

    def fit(self, model: Model, rows: Rows | Sequence[Rows], *, folder: Path | None = None, **settings: Any) -> Fitted:
        """Train a model in place, with the settings of a `train` stage. The tuning stays attached."""
        values = {"steps": 60, "batch_size": 32, "precision": "fp32", "spike": None, **settings}
        return fit(model, rows, FitSettings(**values), folder=folder, seed=self.seed, load=self.base)

    def accuracy(self, model: Model, skills: str | Sequence[str], num: int = 100) -> float:
        """Return the share of `num` held-out questions of each skill that a model answers exactly, in per cent."""
        rows = list(self._questions(skills, num, "test"))
        encoder = Encoder(model.tokenizer, model.module.config.max_position_embeddings)
        answers = [str(row.content["completion"]) for row in rows]
        written = generate(model, [encoder.prompt(row) for row in rows], max(map(len, answers)) + 4)
        texts = [model.tokenizer.decode(tokens) for tokens in written]
        return 100 * sum(text == answer for text, answer in zip(texts, answers, strict=True)) / len(rows)

    def loss(self, model: Model, skills: str | Sequence[str], num: int = 200) -> float:
        """Return the mean loss on the answers to `num` held-out questions of each skill, in nats per token."""
        encoder = Encoder(model.tokenizer, model.module.config.max_position_embeddings)
        rows = list(self._questions(skills, num, "test"))
        logprobs = example_logprobs(model, [[sequence] for sequence in encoder.supervised_many(rows)])
        return -float(np.concatenate(logprobs).mean())

    def state_share(self, model: Model, tune: Any = "full", optimizer: Any = "adamw") -> float:
        """Return the bytes that an optimizer holds after a step, as a share of the bytes of the model's weights."""
        parameters = list(Tune.parse(tune).attach(model, self.seed).parameters())
        stepping = Optim.parse(optimizer).build(parameters, 1e-4)
        for _, parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        stepping.step()
        held = sum(tensor.nbytes for tensor in _tensors(stepping.state_dict()))
        return held / sum(parameter.nbytes for parameter in model.module.parameters())

    def known(self, name: str = "nano") -> list[str]:
        """Return the skills that a base knows."""
        return list(BASES[name].knows)

    @cached_property
    def generator(self) -> np.random.Generator:
        """The study's own draws."""
        return np.random.default_rng(self.seed)


def _tensors(state: Any) -> Iterable[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
