"""Low-rank experts behind a router: a change that depends on the input, and so is no change of weights.

    y <- y + scaling * sum_n G_n(x) B_n A_n x,   G(x) = softmax(W_g x)

Applied they are attached, each beside its projection as a child module, so that they move with the model and belong to
its fingerprint; undone they are taken off. What asks for their weights (a merge, a compressor, a sum with a change of
weights, a folder that transformers reads) is told that there are none.

Legend: T tokens, I input features, O output features, N experts, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NoReturn, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from temper.core.errors import ModelError
from temper.delta.base import Delta, Provenance, Undo, check_shape
from temper.models.anatomy import Runs
from temper.models.model import Model
from temper.models.packed import unpack_all

FILE = "experts.safetensors"


class Experts(nn.Module):
    """The experts and the router of one projection."""

    def __init__(self, router_NI: Tensor, a_NRI: Tensor, b_NOR: Tensor, scaling: float) -> None:
        super().__init__()
        self.router_NI, self.a_NRI, self.b_NOR = nn.Parameter(router_NI), nn.Parameter(a_NRI), nn.Parameter(b_NOR)
        self.scaling = scaling

    def route(self, x_TI: Tensor) -> Tensor:
        """Return how much each expert counts for each token, (T, N), float32."""
        return F.softmax(F.linear(x_TI, self.router_NI.to(x_TI.dtype)), -1, dtype=torch.float32)

    def mix(self, x_TI: Tensor, gate_TN: Tensor) -> Tensor:
        """Return what the experts say together, (T, O)."""
        (num, rank, _), (_, out, _) = self.a_NRI.shape, self.b_NOR.shape
        inner = F.linear(x_TI, self.a_NRI.flatten(0, 1).to(x_TI.dtype))
        weighed = inner * gate_TN.repeat_interleave(rank, -1).to(inner.dtype)
        b_OK = self.b_NOR.transpose(0, 1).reshape(out, num * rank)
        return F.linear(weighed, (b_OK * self.scaling).to(weighed.dtype))

    def copy(self) -> Experts:
        """Return them as they are now, on the CPU and frozen."""
        held = [tensor.detach().cpu().clone() for tensor in (self.router_NI, self.a_NRI, self.b_NOR)]
        return Experts(held[0], held[1], held[2], self.scaling).requires_grad_(False)


@dataclass(frozen=True)
class Placed:
    """Experts and the projection that they stand beside."""

    path: str
    """of the module"""
    rows: Runs | None
    """runs of its output features to which they add, None for all"""
    experts: Experts

    def rows_O(self, device: torch.device) -> Tensor | None:
        """Return these output features, int64."""
        return None if self.rows is None else torch.cat([torch.arange(*run) for run in self.rows]).to(device)


class TakeOff(Undo):
    """Takes experts off a model."""

    def __init__(self, attached: list[tuple[nn.Module, str, RemovableHandle]]) -> None:
        self.attached = attached

    def undo(self) -> None:
        for module, name, handle in self.attached:
            handle.remove()
            delattr(module, name)
        self.attached = []


class ExpertsDelta(Delta, kind="experts"):
    """Experts beside some projections."""

    is_attached: ClassVar[bool] = True

    def __init__(self, placed: Sequence[Placed], provenance: Provenance | None = None) -> None:
        self.placed, self.provenance = list(placed), provenance or Provenance()

    def names(self) -> Sequence[str]:
        """Raise ModelError: a caller that works on weights would drop the experts."""
        self._refuse()

    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError(
            "experts behind a router add something else for every token, which no change of weights can: they can be "
            "attached and taken off, and neither merged, compressed, exported nor added to changes of weights; use "
            "the stage that trained them as it is, or train it with a tuner that folds, such as lora"
        )

    @property
    def num_values(self) -> int:
        return sum(parameter.numel() for each in self.placed for parameter in each.experts.parameters())

    def scale(self, factor: float) -> ExpertsDelta:
        placed = []
        for each in self.placed:
            experts = each.experts.copy()
            experts.scaling *= factor
            placed.append(Placed(each.path, each.rows, experts))
        return ExpertsDelta(placed, self.provenance)

    @classmethod
    def add_same(cls, deltas: Sequence[Self]) -> Delta | None:
        return deltas[0] if len(deltas) == 1 else None

    def fit(self, module: nn.Module) -> ExpertsDelta:
        """Return the delta.

        Raises:
            ModelError: a projection that the module lacks or has in another shape.
        """
        unpack_all(module)
        named = dict(module.named_modules())
        for each in self.placed:
            if each.path not in named:
                raise ModelError(f"{each.path}: has experts in the delta, and the model has no such module")
            target = named[each.path]
            weight = target.get_parameter("weight")
            out, width = weight.shape[::-1] if isinstance(target, Conv1D) else weight.shape
            last = each.experts.b_NOR.shape[1] if each.rows is None else max(stop for _, stop in each.rows)
            fits = last == out if each.rows is None else last <= out
            check_shape(each.path, (last, each.experts.a_NRI.shape[2]), (last if fits else out, width))
        return self

    def apply(self, model: Model | nn.Module, keep: bool = True) -> Undo:
        """Attach the experts, frozen."""
        module: nn.Module = model.module if isinstance(model, Model) else model
        self.fit(module)
        attached = []
        for each in self.placed:
            target = module.get_submodule(each.path)
            device = next(target.parameters()).device
            experts = each.experts.copy().to(device)
            name = f"experts_{sum(child.startswith('experts_') for child, _ in target.named_children())}"
            target.add_module(name, experts)
            hook = partial(_add, experts, each.rows_O(device))
            attached.append((target, name, target.register_forward_hook(hook)))
        if isinstance(model, Model):
            model.is_changed = True
        return TakeOff(attached)

    def write(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for number, each in enumerate(self.placed):
            tensors |= {
                f"{number}.{name}": value.contiguous() for name, value in each.experts.copy().named_parameters()
            }
        note = [{"path": each.path, "rows": each.rows, "scaling": each.experts.scaling} for each in self.placed]
        save_file(tensors, folder / FILE, metadata={"format": "pt", "placed": json.dumps(note)})

    @classmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        with safe_open(folder / FILE, framework="pt") as file:
            placed = []
            for number, note in enumerate(json.loads(file.metadata()["placed"])):
                # Clones: the file may be written again while it is mapped.
                held = [file.get_tensor(f"{number}.{name}").clone() for name in ("router_NI", "a_NRI", "b_NOR")]
                rows = None if note["rows"] is None else tuple((start, stop) for start, stop in note["rows"])
                experts = Experts(held[0], held[1], held[2], note["scaling"]).requires_grad_(False)
                placed.append(Placed(note["path"], rows, experts))
        return cls(placed, provenance)


def _add(experts: Experts, rows_O: Tensor | None, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    x_TI = args[0]
    if not torch.is_autocast_enabled(x_TI.device.type):  # which would cast it back
        x_TI = x_TI.float()
    added_TO = experts.mix(x_TI, experts.route(x_TI)).to(out.dtype)
    return out + added_TO if rows_O is None else out.index_add(-1, rows_O, added_TO)
