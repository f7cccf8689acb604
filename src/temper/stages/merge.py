"""Combine the models that several stages made into one.

The base is loaded once and becomes the merged model, one tensor at a time; the other models are read from
their folders a tensor at a time. So one model is held, and a second only where the changes are relative to a
base that is another stage while a model descends from the recipe's base without passing through it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from temper.core.errors import ModelError, SettingError
from temper.core.files import whole_folder
from temper.delta.base import Delta, check_shape
from temper.delta.lineage import Lineage, trace
from temper.delta.tensors import module_tensors, open_weights
from temper.merge.base import Merge
from temper.models.load import save_model
from temper.stages.base import Context, Outcome, Stage


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
        self.method.check(len(self.of))
        return self

    def models(self, previous: str) -> Sequence[str]:
        return list(dict.fromkeys([*self.of, self.base]))

    def run(self, context: Context, previous: str) -> Outcome:
        start = time.monotonic()
        model = context.load(self.base)
        module: nn.Module = model.module
        changes = self._changes(context, module)
        touched = merge_into(module, self.method, changes)
        context.say(f"merged {len(self.of)} models: {touched} tensors changed")
        with whole_folder(context.folder / "model") as folder:
            save_model(model, folder)
        return Outcome(
            cost={"seconds": time.monotonic() - start},
            details={
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "changed_tensors": touched,
            },
        )

    def _changes(self, context: Context, module: nn.Module) -> list[Change]:
        start = trace(self.base, context.artifact)
        lines = [trace(stage, context.artifact) for stage in self.of]
        recipe_base: Mapping[str, Tensor] | None = None
        changes = []
        for stage, line in zip(self.of, lines, strict=True):
            deltas = _after(line, start)
            root: Mapping[str, Tensor] | None = None
            if deltas is None:
                deltas = [delta for _, delta in line.deltas]
                if line.root is not None:
                    root = open_weights(line.root)
                else:
                    recipe_base = recipe_base or module_tensors(context.load(line.whole).module)
                    root = recipe_base
            try:
                changes.append(Change.of(module, root, deltas))
            except ModelError as error:
                raise ModelError(f"stage {stage!r}: {error}") from error
        return changes


def _after(line: Lineage, start: Lineage) -> list[Delta] | None:
    """Return the changes that a model adds to the one it is compared with, None where it does not descend from it."""
    shared = [stage for stage, _ in line.deltas[: len(start.deltas)]]
    if line.whole != start.whole or shared != [stage for stage, _ in start.deltas]:
        return None
    return [delta for _, delta in line.deltas[len(start.deltas) :]]


@dataclass(frozen=True)
class Change:
    """One model relative to the base: `root - base + deltas`, or the deltas alone."""

    root: Mapping[str, Tensor] | None
    deltas: Sequence[tuple[frozenset[str], Delta]]
    """what each changes, and itself"""

    @classmethod
    def of(cls, module: nn.Module, root: Mapping[str, Tensor] | None, deltas: Sequence[Delta]) -> Self:
        """Return a change that fits the base.

        Raises:
            ModelError: a tensor that only one of the models has, or has in another shape, or a weight that
                only the base ties.
        """
        if root is not None:
            parameters = dict(module.named_parameters(remove_duplicate=False))
            first: dict[nn.Parameter, str] = {}
            for name in root:
                if name not in parameters:
                    raise ModelError(f"{name}: is in this model and not in the base; merge models of one architecture")
                check_shape(name, root[name].shape, parameters[name].shape)
                other = first.setdefault(parameters[name], name)
                if other != name and not torch.equal(root[other], root[name]):
                    raise ModelError(
                        f"{name}: is tied to {other} in the base and not in this model; tie both or neither"
                    )
            for name, parameter in parameters.items():
                if parameter not in first:
                    raise ModelError(f"{name}: is in the base and not in this model; merge models of one architecture")
        fitted = [delta.fit(module) for delta in deltas]
        return cls(root, [(frozenset(delta.names()), delta) for delta in fitted])

    def update(self, aliases: Sequence[str], base: Tensor) -> Tensor | None:
        """Return the change of one parameter in float32, None where there is none.

        Args:
            aliases: the parameter's names; more than one where it is tied.
            base: its value in the base, float32.
        """
        change: Tensor | None = None
        if self.root is not None:
            change = self.root[next(name for name in aliases if name in self.root)].to(base) - base
        for names, delta in self.deltas:
            for name in names.intersection(aliases):
                update = delta.update(name, base)
                change = update if change is None else change + update
        return change


def merge_into(module: nn.Module, method: Merge, changes: Sequence[Change]) -> int:
    """Replace a base's weights by the merged ones, in place, and return how many tensors some model changed.

    A tied weight is one tensor, whichever of its names a change uses.
    """
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    touched = 0
    with torch.no_grad():
        for parameter, names in aliases.items():
            base = parameter.float()
            updates = [change.update(names, base) for change in changes]
            if any(update is not None for update in updates):
                deltas = [torch.zeros_like(base) if update is None else update for update in updates]
                parameter.copy_(base + method.combine(names[0], base, deltas))
                touched += 1
    return touched
