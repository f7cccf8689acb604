"""What studies do with the lab: fresh bases, skills, trainings, and two measures.

Everything follows from the study's seed: the order of the data, the rows, the tuner's start.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from temper.data.encode import Encoder
from temper.data.example import Format, Origin, Row
from temper.data.rows import Rows
from temper.engine.fit import Fitted, fit
from temper.engine.settings import FitSettings
from temper.lab.architecture import Architecture
from temper.lab.bases import BASES as LAB_BASES
from temper.lab.bases import LabBase
from temper.lab.training import question, skill_named
from temper.models.generate import generate
from temper.models.model import Model
from temper.optim.base import Optim
from temper.signals.likelihood import example_logprobs
from temper.tune.base import Tune

BASES = {
    **{name: LAB_BASES[name] for name in ("nano", "tiny")},
    "deep": LabBase(
        description="eight narrow blocks: for methods that choose among blocks",
        knows={"copy": 2048, "shift": 4096, "sort": 8192},
        steps=350,
        lr=3e-3,
        architecture=Architecture(width=64, layers=8, heads=2),
    ),
}
"""what studies start from"""


@dataclass(frozen=True)
class Bench:
    """The lab, for one seed of one study."""

    seed: int
    cache: Path
    """where lab bases are kept"""
    base_seed: int = 0
    """of the bases: each seed of a study has its own, or an interval would speak for one base alone"""

    def base(self, name: str = "nano") -> Model:
        """Return a fresh copy of a base: `nano` knows three skills, `tiny` seven; `deep` has eight narrow blocks."""
        return BASES[name].model_copy(update={"seed": self.base_seed}).open(name, self.cache)

    def rows(self, skills: str | Sequence[str], num: int = 1024, split: str = "train") -> Rows:
        """Return `num` questions of each skill, with their answers; the skill is in the column `task`."""
        return Rows.from_rows(list(self._questions(skills, num, split)), f"lab {skills} {split} {num} {self.seed}")

    def _questions(self, skills: str | Sequence[str], num: int, split: str) -> Iterable[Row]:
        for name in [skills] if isinstance(skills, str) else skills:
            skill = skill_named(name)
            yield from (question(skill, argument) for argument in skill.arguments(split, num, self.seed))

    def made(self, format: Format, contents: Iterable[Mapping[str, Any]]) -> Rows:
        """Return rows of contents that the study has made itself."""
        rows = [Row(format, dict(content), {}, Origin("<study>", None)) for content in contents]
        return Rows.from_rows(rows, f"study {format} {len(rows)} {self.seed}")

    def fit(
        self,
        model: Model,
        rows: Rows | Sequence[Rows],
        models: Mapping[str, Model] | None = None,
        folder: Path | None = None,
        **settings: Any,
    ) -> Fitted:
        """Train a model in place, with the settings of a `train` stage. The tuning stays attached.

        Args:
            models: what the settings' names of other models stand for, besides those of lab bases.
            folder: holds what the training leaves (snapshots); a temporary one by default.
        """
        values = {"steps": 60, "batch_size": 32, "precision": "fp32", "spike": None, **settings}
        others = models or {}
        return fit(
            model,
            rows,
            FitSettings(**values),
            folder=folder,
            seed=self.seed,
            load=lambda name: others[name] if name in others else self.base(name),
        )

    def trained(self, skills: str | Sequence[str], base: str = "nano", num: int = 1024, **settings: Any) -> Model:
        """Return a fresh base that has trained on `num` questions of each skill, with the settings of `fit`."""
        model = self.base(base)
        self.fit(model, self.rows(skills, num), **settings)
        return model

    def copied(self, model: Model) -> Model:
        """Return another model with the same numbers, all of which may train."""
        twin = copy.deepcopy(model)
        twin.module.requires_grad_(True)
        return twin

    def tuned(
        self,
        start: Model | str,
        rows: Rows | Sequence[Rows],
        models: Mapping[str, Model] | None = None,
        **settings: Any,
    ) -> Model:
        """Return another model: what full tuning on rows makes of a model, or of a lab base by its name."""
        model = self.base(start) if isinstance(start, str) else self.copied(start)
        self.fit(model, rows, models, tune="full", **settings)
        return model

    def blurred(self, sources: Sequence[Rows]) -> list[Rows]:
        """Return sources of the same sizes, with all rows shuffled together."""
        every = [row for source in sources for row in source]
        order = iter(self.generator.permutation(len(every)))
        return [
            Rows.from_rows([every[place] for place in islice(order, len(source))], f"blurred {number} {self.seed}")
            for number, source in enumerate(sources)
        ]

    def answer_logprobs(self, model: Model, questions: Iterable[tuple[str, str]]) -> list[NDArray[np.float64]]:
        """Return the log-probability in nats of every token of each answer, end of text included."""
        encoder = Encoder(model.tokenizer, model.module.config.max_position_embeddings)
        contents = [{"prompt": prompt, "completion": answer} for prompt, answer in questions]
        rows = [Row("completion", content, {}, Origin("<study>", None)) for content in contents]
        return example_logprobs(model, [[sequence] for sequence in encoder.supervised_many(rows)])

    def accuracy(self, model: Model, skills: str | Sequence[str], num: int = 100) -> float:
        """Return the share of `num` held-out questions of each skill that a model answers exactly, in per cent."""
        return self.exact_match(model, list(self._questions(skills, num, "test")))

    def exact_match(self, model: Model, rows: Sequence[Row], ignored: str = "") -> float:
        """Return the share of rows that a model answers exactly, but for the characters `ignored`, in per cent."""
        encoder = Encoder(model.tokenizer, model.module.config.max_position_embeddings)
        answers = [str(row.content["completion"]) for row in rows]
        written = generate(model, [encoder.prompt(row) for row in rows], max(map(len, answers)) + 4)
        drop = str.maketrans("", "", ignored)
        texts = [model.tokenizer.decode(tokens).translate(drop) for tokens in written]
        right = [text == answer.translate(drop) for text, answer in zip(texts, answers, strict=True)]
        return 100 * sum(right) / len(rows)

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


def styled(row: Row, between: str) -> Row:
    """Return a row whose answer has something between its letters."""
    return replace(row, content={**row.content, "completion": between.join(str(row.content["completion"]))})


def _tensors(state: Any) -> Iterable[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
