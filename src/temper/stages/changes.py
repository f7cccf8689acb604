"""What the models that stages made change of a base: read from their folders, a tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from temper.core.errors import ModelError
from temper.delta.base import Delta, check_shape
from temper.delta.dense import DenseDelta, add
from temper.delta.lineage import Lineage, trace
from temper.delta.prompt import PromptDelta
from temper.delta.tensors import module_tensors, open_weights, read_prompts, with_zeros
from temper.models.biases import give_biases
from temper.models.model import Model


class Stages(Protocol):
    """What a finished run gives: its stages' models and folders."""

    def load(self, stage: str) -> Model: ...

    def artifact(self, stage: str) -> Path | None: ...


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

    def touches(self, aliases: Sequence[str]) -> bool:
        """Tell whether it may change a parameter."""
        return self.root is not None or any(not names.isdisjoint(aliases) for names, _ in self.deltas)

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


class Changes:
    """Several models' changes to one base, by parameter.

    A tied weight is one parameter, under its first name, whichever of its names a change uses.

    Args:
        stages: where the models lie.
        of: the stages that made them.
        base: the stage (or `base`) that the changes are relative to.
        module: its model; it is given the biases that it lacks and the others have.

    Raises:
        ModelError: a model that does not fit the base.
    """

    def __init__(self, stages: Stages, of: Sequence[str], base: str, module: nn.Module) -> None:
        self.changes = _read(stages, of, base, module)
        aliases: dict[nn.Parameter, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            aliases.setdefault(parameter, []).append(name)
        self.parameters = {names[0]: parameter for parameter, names in aliases.items()}
        self._aliases = {names[0]: names for names in aliases.values()}

    def names(self) -> list[str]:
        """Return the parameters that some model may change."""
        return [name for name, aliases in self._aliases.items() if any(it.touches(aliases) for it in self.changes)]

    def base(self, name: str) -> Tensor:
        """Return a parameter's value in the base, float32."""
        return self.parameters[name].detach().float()

    def of(self, name: str) -> list[Tensor]:
        """Return a parameter's change in each model, float32; zeros where there is none."""
        base = self.base(name)
        updates = [change.update(self._aliases[name], base) for change in self.changes]
        return [torch.zeros_like(base) if update is None else update for update in updates]


def _read(stages: Stages, of: Sequence[str], base: str, module: nn.Module) -> list[Change]:
    start = trace(base, stages.artifact)
    prompts = _prompts(start)
    lines = [trace(stage, stages.artifact) for stage in of]
    recipe_base: Mapping[str, Tensor] | None = None
    found: list[tuple[Mapping[str, Tensor] | None, list[Delta]]] = []
    for stage, line in zip(of, lines, strict=True):
        if not torch.equal(_prompts(line), prompts):
            raise ModelError(
                f"stage {stage!r}: reads other soft prompts than {base!r}, and no weights can hold them; merge changes "
                "to the stage that made the prompt (`base`), or train with the prompt lent (`with`)"
            )
        deltas = _after(line, start)
        root: Mapping[str, Tensor] | None = None
        if deltas is None:
            deltas = [delta for _, delta in line.deltas if not isinstance(delta, PromptDelta)]
            if line.root is not None:
                root = open_weights(line.root)
            else:
                recipe_base = recipe_base or module_tensors(stages.load(line.whole).module)
                root = recipe_base
        found.append((root, deltas))
    named = [name for root, deltas in found for name in (*(root or ()), *(n for it in deltas for n in it.names()))]
    zeros = {name: module.get_parameter(name).shape for name in give_biases(module, named).names}
    changes = []
    for stage, (root, deltas) in zip(of, found, strict=True):
        try:
            changes.append(Change.of(module, None if root is None else with_zeros(root, zeros), deltas))
        except ModelError as error:
            raise ModelError(f"stage {stage!r}: {error}") from error
    return changes


def _prompts(line: Lineage) -> Tensor:
    """Return the soft prompts of a stage's model, those of the recipe's base left out."""
    first = torch.empty(0) if line.root is None else read_prompts(line.root)
    further = [delta.vectors_PD for _, delta in line.deltas if isinstance(delta, PromptDelta)]
    every = [prompts for prompts in (first, *further) if len(prompts)]
    return torch.cat(every) if every else first


def delta_since(stages: Stages, stage: str, since: str) -> Delta:
    """Return what was done to one stage's model to make another's: in its own form where it has one, else dense.

    Raises:
        ModelError: models of different architectures.
    """
    line = trace(stage, stages.artifact)
    deltas = _after(line, trace(since, stages.artifact))
    if deltas:
        return add(*deltas)
    return DenseDelta.between(stages.load(stage), stages.load(since))
