"""The training stage: a model and rows in, a change to the model out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from temper.core.errors import SettingError
from temper.core.methods import methods_in
from temper.data.rows import Rows
from temper.data.source import Source
from temper.delta.base import read_delta
from temper.delta.prompt import PromptDelta
from temper.engine.checkpoint import Checkpoints
from temper.engine.fit import Fitted, fit
from temper.engine.progress import showing_progress
from temper.engine.settings import FitSettings
from temper.models.model import Model
from temper.signals.setup import is_outside
from temper.stages.base import Context, Outcome, Stage


class Train(Stage, FitSettings, name="train"):
    """Train the model of an earlier stage on data."""

    runs_on: ClassVar[Literal["main", "all"]] = "all"
    example: ClassVar[dict[str, Any]] = {
        "data": [{"lab": {"skill": skill, "num": 16}} for skill in ("copy", "shift")],
        "steps": 2,
        "batch_size": 4,
        "snapshots": 1,
    }

    data: tuple[Source, ...] = Field(
        description="sources of rows, shuffled together unless `mix` says otherwise", min_length=1
    )
    from_stage: str | None = Field(
        None, alias="from", description="stage whose model is trained, or base; the nearest model before, if not given"
    )
    with_prompts: tuple[str, ...] = Field(
        (),
        alias="with",
        description="stages that trained soft prompts: they stand before every document, frozen, while this stage "
        "trains, and are taken off before it is saved and measured",
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="of this stage; the recipe's where not given")

    @field_validator("with_prompts", mode="before")
    @classmethod
    def _one_or_many(cls, written: object) -> object:
        return (written,) if isinstance(written, str) else written

    def models(self, previous: str) -> Sequence[str]:
        return tuple(dict.fromkeys((self.starts_from(previous), *self.with_prompts, *self.asked_models)))

    def starts_from(self, previous: str) -> str:
        return self.from_stage or previous

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        return super().prompt_length(lengths, previous) + self.tune.prompt_length

    def sources(self) -> Sequence[Source]:
        return (*self.data, *sources_of(self))

    def run(self, context: Context, previous: str) -> Outcome:
        parts = [context.open(source) for source in self.data]
        seed = context.seed if self.seed is None else self.seed
        model = context.load(self.starts_from(previous))
        lent = [self._prompt(context, stage) for stage in self.with_prompts]
        outcome = train_into(context.folder, context, parts, model, self, seed, lent=lent)
        for source, part in zip(self.data, outcome.details.get("mixture", ()), strict=False):
            part["source"] = source.label
        return outcome

    def _prompt(self, context: Context, stage: str) -> Tensor:
        """Return the soft prompt that a stage trained.

        Raises:
            SettingError: its change is something else.
        """
        folder = None if is_outside(stage) else context.artifact(stage)
        delta = read_delta(folder / "delta") if folder is not None and (folder / "delta").is_dir() else None
        if not isinstance(delta, PromptDelta):
            what = "made no change of its own" if delta is None else f"made a {delta.kind} change"
            fix = "name a stage whose `tune` is soft_prompt, or train `from` this stage"
            raise SettingError("train.with", stage, f"{what}, and only a soft prompt can be taken off again", fix)
        return delta.vectors_PD


def sources_of(settings: FitSettings) -> list[Source]:
    """Return the data that the methods of a training read besides its own: what is replayed, held to, or looked at."""
    methods = [settings.tune, settings.objective, *settings.retain]
    return [inside for method in methods for inside in methods_in(method) if isinstance(inside, Source)]


def train_into(
    folder: Path,
    context: Context,
    parts: Sequence[Rows],
    model: Model,
    settings: FitSettings,
    seed: int,
    *,
    lent: Sequence[Tensor] = (),
) -> Outcome:
    """Train a model on rows and leave the result in a folder; called again after a kill, it goes on where it was.

    Args:
        lent: soft prompts that the model has while it trains, and its result has not.
    """
    is_main = context.world.is_main
    own = model.prompts
    model.prompts = (*own, *lent)
    with showing_progress(context.name, settings.budget.steps) if is_main else nullcontext() as show:
        fitted = fit(
            model,
            parts,
            settings,
            folder=folder,
            seed=seed,
            on_bad_rows=context.on_bad_rows,
            open_source=context.open,
            load=context.load,
            stage=context.name,
            on_step=show,
            world=context.world,
        )
    model.prompts = own
    if is_main:
        _save(fitted, folder)
        # The result is whole: the checkpoints have done their work.
        Checkpoints(folder / "checkpoints").remove()
    return Outcome(cost=fitted.cost, details=fitted.details, warnings=fitted.warnings)


def _save(fitted: Fitted, folder: Path) -> None:
    """Write the result beside its place and move it there, so that a kill leaves it whole or absent."""
    partial = folder / "result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    fitted.tuning.save(partial)
    fitted.target.save(partial)
    for child in sorted(partial.iterdir()):
        shutil.rmtree(folder / child.name, ignore_errors=True)
        child.rename(folder / child.name)
    partial.rmdir()
