"""The change that a stage made, as an artifact with provenance.

Decisions:
- A delta speaks of parameters by name and gives the change of each as a dense tensor of its stored shape,
  one at a time, so that no kind ever needs a second copy of a model.
- Changes are computed in float32 and rounded once, into the parameter's own dtype.
- A linear module that lacks a bias has one of 0: a change to it gives the model this bias.
- A kind is one file in this package: subclassing with `kind=` registers it, and `read_delta` asks the
  folder which one wrote it: `temper.json`, or for an adapter from elsewhere PEFT's own type.
- Provenance lies in a file of its own, so that a folder in another tool's layout stays that.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from temper.core.errors import ModelError, TemperError, nearest
from temper.core.files import write_json
from temper.core.methods import load_entry_points
from temper.core.version import temper_version
from temper.models.biases import Given, give_biases, lacking_linear, take_biases
from temper.models.model import Model
from temper.models.packed import unpack_all

PROVENANCE_FILE = "temper.json"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's layout"""


@dataclass(frozen=True)
class Provenance:
    """Where a change comes from."""

    base_fingerprint: str = ""
    """fingerprint of the model that it changes; empty where nobody knows (an adapter from elsewhere)"""
    base_name: str = ""
    """the hub id, folder or built-in name of that model"""
    method: dict[str, Any] = field(default_factory=dict)
    """the settings that made it, as written in a recipe"""
    data: dict[str, str] = field(default_factory=dict)
    """label and fingerprint of each source that it was trained on"""
    seed: int = 0
    version: str = field(default_factory=temper_version)
    """of Temper"""


class Undo:
    """Gives back what applying a delta overwrote. Where several were applied, undo the last one first."""

    def __init__(self, kept: dict[nn.Parameter, Tensor] | None, module: nn.Module, given: Given) -> None:
        self._kept, self._module, self._given = kept, module, given

    def undo(self) -> None:
        """Put the original values back, bit for bit.

        Raises:
            ModelError: they were not kept.
        """
        if self._kept is None:
            raise ModelError("a delta applied with keep=False cannot be undone; load the model again")
        with torch.no_grad():
            for parameter, value in self._kept.items():
                parameter.copy_(value)
        take_biases(self._module, self._given)
        self._kept, self._given = {}, Given()


class Delta(ABC):
    """A change to a model's parameters."""

    kind: ClassVar[str] = ""
    peft_type: ClassVar[str] = ""
    """what PEFT calls an adapter of this kind, empty where it has none"""
    is_attached: ClassVar[bool] = False
    """It changes no weight: applied it stands beside the model, and `names`, `update` and what rests on them refuse."""
    provenance: Provenance

    def __init_subclass__(cls, *, kind: str = "", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.kind = kind
        if kind:
            _kinds[kind] = cls

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names of the parameters that it changes, as `named_parameters` has them."""

    @abstractmethod
    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        """Return the change of one parameter: float32, of the parameter's stored shape.

        Args:
            name: one of `names()`.
            like: the parameter; its device is where the change is made (the CPU without it).
        """

    @property
    @abstractmethod
    def num_values(self) -> int:
        """How many numbers it stores."""

    @abstractmethod
    def scale(self, factor: float) -> Delta:
        """Return the change times a factor."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write everything but the provenance into an existing folder."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        """Read what `write` wrote.

        Args:
            provenance: None where the folder has no `temper.json`.
        """

    @classmethod
    def add_same(cls, deltas: Sequence[Self]) -> Delta | None:
        """Return the sum of deltas of this kind in its own form, None where it has none."""
        return None

    def plain(self) -> Delta:
        """Return the change without a code of its own around it: itself, for kinds that have none."""
        return self

    def fit(self, module: nn.Module) -> Delta:
        """Return the delta as it goes onto a module.

        Raises:
            ModelError: the module lacks a parameter, has it in another shape, or ties two that it changes.
        """
        unpack_all(module)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        seen: dict[nn.Parameter, str] = {}
        for name in self.names():
            linear = None if name in parameters else lacking_linear(module, name)
            if linear is not None:
                check_shape(name, self.update_shape(name), (linear.out_features,))
                continue
            parameter = find_parameter(parameters, name)
            check_shape(name, self.update_shape(name), parameter.shape)
            if parameter in seen:
                raise ModelError(
                    f"{name}: is the same weight as {seen[parameter]} in this model, and the delta changes both; "
                    "apply it to a model that does not tie them"
                )
            seen[parameter] = name
        return self

    def update_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one parameter's change."""
        return tuple(self.update(name).shape)

    def apply(self, model: Model | nn.Module, keep: bool = True) -> Undo:
        """Add the change to a model's own parameters, in place: what is tied stays tied.

        Args:
            model: what to change.
            keep: hold a copy of the values that are overwritten, so that they can be given back.

        Raises:
            ModelError: the delta does not fit; the model is then untouched.
        """
        module: nn.Module = model.module if isinstance(model, Model) else model
        delta = self.fit(module)
        given = give_biases(module, delta.names())
        parameters = dict(module.named_parameters(remove_duplicate=False))
        kept: dict[nn.Parameter, Tensor] = {}
        if isinstance(model, Model):
            model.is_changed = True
        with torch.no_grad():
            for name in delta.names():
                parameter = parameters[name]
                if keep and name not in given.names:
                    kept[parameter] = parameter.detach().clone()
                parameter.copy_(parameter.float() + delta.update(name, parameter))
        return Undo(kept if keep else None, module, given)

    def save(self, folder: Path) -> None:
        """Write it into a folder, provenance last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)
        self.write(folder)
        write_json(folder / PROVENANCE_FILE, {"kind": self.kind, "provenance": asdict(self.provenance)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder of this kind.

        Raises:
            ModelError: the folder is of another kind, or holds what this kind does not support.
        """
        delta = read_delta(folder)
        if not isinstance(delta, cls):
            raise ModelError(f"{folder}: is a {delta.kind} delta, not a {cls.kind} one; read it with read_delta")
        return delta


_kinds: dict[str, type[Delta]] = {}


def delta_kinds() -> dict[str, type[Delta]]:
    """Return every kind of delta by name, discovering this package's files first."""
    package = importlib.import_module("temper.delta")
    for info in pkgutil.iter_modules(package.__path__, prefix=package.__name__ + "."):
        importlib.import_module(info.name)
    load_entry_points()
    return dict(_kinds)


def read_delta(folder: Path) -> Delta:
    """Read a delta of any kind.

    Raises:
        ModelError: no kind knows the folder, or the kind that does cannot read what it holds.
    """
    try:
        return _read_delta(folder)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, TemperError):
            raise
        raise ModelError(f"{folder}: is damaged ({error}); make or copy it again") from error


def _read_delta(folder: Path) -> Delta:
    kinds = delta_kinds()
    note = folder / PROVENANCE_FILE
    if note.is_file():
        written = json.loads(note.read_text(encoding="utf-8"))
        if written["kind"] not in kinds:
            raise ModelError(
                f"{note}: kind: {written['kind']!r} is no kind of delta; {nearest(written['kind'], kinds)}"
            )
        return kinds[written["kind"]].read(folder, Provenance(**written["provenance"]))
    config = folder / CONFIG_FILE
    if config.is_file():
        found = json.loads(config.read_text(encoding="utf-8")).get("peft_type")
        by_type = {kind.peft_type: kind for kind in kinds.values() if kind.peft_type}
        if found is None:
            raise ModelError(f"{config}: peft_type: is missing; save the adapter again with PEFT")
        if found not in by_type:
            raise ModelError(
                f"{config}: peft_type: {found!r} is not supported, {' and '.join(sorted(by_type))} are; "
                "in PEFT: merge_and_unload, and give the merged model"
            )
        return by_type[found].read(folder, None)
    raise ModelError(f"{folder}: holds neither {PROVENANCE_FILE} nor a PEFT adapter; give a stage's delta folder")


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Replace the provenance of a saved delta, by what only the stage around it knows.

    Raises:
        ModelError: the folder holds no delta.
    """
    kind = read_delta(folder).kind
    write_json(folder / PROVENANCE_FILE, {"kind": kind, "provenance": asdict(provenance)})


def find_parameter(parameters: dict[str, nn.Parameter], name: str) -> nn.Parameter:
    """Return a parameter by name, or raise ModelError."""
    if name not in parameters:
        raise ModelError(
            f"{name}: the delta changes it and the model has no such parameter; {nearest(name, parameters)}"
        )
    return parameters[name]


def check_shape(name: str, theirs: Sequence[int], ours: Sequence[int]) -> None:
    """Raise ModelError where a parameter's change has another shape than the parameter."""
    if tuple(theirs) != tuple(ours):
        raise ModelError(
            f"{name}: has shape {tuple(theirs)} in the delta and {tuple(ours)} in the model; "
            "use the model, and the vocabulary, that the delta was made from"
        )
