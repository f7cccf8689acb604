"""Combine the models that several stages made into one.

The base is loaded once and becomes the merged model, one tensor at a time; the other models are read from
their folders a tensor at a time. So one model is held, and a second only where the changes are relative to a
base that is another stage while a model descends from the recipe's base without passing through it, or where the
method looks at mixtures before it settles on one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from temper.core.errors import SettingError
from temper.core.files import whole_folder
from temper.data.rows import Rows
from temper.data.source import Source
from temper.engine.precision import best_device, hold_in
from temper.measure.base import Subject
from temper.merge.base import Combine, Merge
from temper.models.biases import give_biases
from temper.models.load import save_model
from temper.models.model import Model
from temper.stages.base import Context, Outcome, Stage, refuse_heads
from temper.stages.changes import Changes


class MergeStage(Stage, name="merge"):
    """Combine models that earlier stages made; writes whole weights."""

    example: ClassVar[dict[str, Any]] = {"method": "linear", "of": ["train"]}

    method: Merge = Field(description="how the changes are combined")
    of: list[str] = Field(min_length=1, description="the stages whose models are merged")
    base: str = Field("base", description="the stage (or `base`) that the changes are relative to")

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        twice = next((stage for stage in self.of if self.of.count(stage) > 1), None)
        if twice is not None:
            raise SettingError("of", twice, "is named twice", "name each stage once, and give it its whole weight")
        try:
            self.method.check(len(self.of))
        except SettingError as error:
            key = f"method.{self.method.method_name}.{error.key}"
            raise SettingError(key, error.value, error.reason, error.fix) from error
        return self

    def models(self, previous: str) -> Sequence[str]:
        return list(dict.fromkeys([*self.of, self.base]))

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        return lengths[self.base]

    def sources(self) -> Sequence[Source]:
        return self.method.sources()

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        refuse_heads(context, self.models(previous), "merge.of", "cannot be merged")
        bench = StageBench(context, self.of, self.base)
        merging = self.method.build(bench)
        bench.free()
        touched = merge_into(bench.changes_of_all, merging.combine)
        context.say(f"merged {len(self.of)} models: {touched} tensors changed")
        with whole_folder(context.folder / "model") as folder:
            save_model(bench.merged, folder)
        return Outcome(
            cost={"seconds": time.monotonic() - start},
            details={
                "parameters": sum(parameter.numel() for parameter in bench.merged.module.parameters()),
                "changed_tensors": touched,
                **merging.details,
            },
        )


class StageBench:
    """The bench of a running stage: `temper.merge.base.Bench`.

    Args:
        context: of the stage.
        of: the stages whose models are merged.
        base: the stage (or `base`) that their changes are relative to.
    """

    def __init__(self, context: Context, of: Sequence[str], base: str) -> None:
        self.context, self.stage = context, base
        self.merged = context.load(base)
        """the base, which becomes the merged model"""
        self.fingerprint = self.merged.fingerprint
        self.changes_of_all = Changes(context, of, base, self.merged.module)
        self.of, self.seed = of, context.seed
        self.cache, self.on_bad_rows = context.cache, context.on_bad_rows

    @cached_property
    def names(self) -> Sequence[str]:
        return self.changes_of_all.names()

    @cached_property
    def model(self) -> Model:
        model = self.context.load(self.stage)
        give_biases(model.module, self.names)
        hold_in(model, torch.float32)
        model.module.to(best_device())
        model.fingerprint, model.is_changed = "", True
        return model

    def subject(self) -> Subject:
        return Subject(self.model, base_fingerprint=self.fingerprint, load_base=lambda: self.context.load(self.stage))

    def free(self) -> None:
        """Let go of the model on which mixtures were tried."""
        self.__dict__.pop("model", None)

    def base(self, name: str) -> Tensor:
        return self.changes_of_all.base(name)

    def changes(self, name: str) -> list[Tensor]:
        return self.changes_of_all.of(name)

    def pour(self, combine: Combine) -> None:
        parameters = dict(self.model.module.named_parameters())
        with torch.no_grad():
            for name in self.names:
                base = self.base(name)
                parameters[name].copy_(base + combine(name, base, self.changes(name)))

    def open(self, source: Source) -> Rows:
        return self.context.open(source)

    def say(self, text: str) -> None:
        self.context.say(text)


def merge_into(changes: Changes, combine: Combine) -> int:
    """Replace a base's weights by the merged ones, in place, and return how many tensors some model changed."""
    names = changes.names()
    with torch.no_grad():
        for name in names:
            base = changes.base(name)
            changes.parameters[name].copy_(base + combine(name, base, changes.of(name)))
    return len(names)
