"""Single entries of frozen matrices that train: one flat parameter of changes and their places for each part.

The primitive below all methods that train a sparse set of entries. The changes are at work inside the module's own
dense weight (written there before each forward pass), and their gradient is picked from the dense one as soon as that
is computed, so that neither optimizer state nor a gradient is held for anything else. Which entries are active may
change at step boundaries; the number of them may not. Entries that stay keep their optimizer state.

Legend: K active entries, L entries laid down, T tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from temper.delta.base import Provenance
from temper.delta.sparse import SparseChange, SparseDelta
from temper.models.anatomy import Part, part_weight
from temper.models.model import Model
from temper.optim.base import Scattered
from temper.tune.base import Tuning
from temper.tune.tap import tap


class Entries:
    """The active entries of one part's matrix (O x I)."""

    def __init__(self, module: nn.Module, part: Part, index_K: Tensor) -> None:
        self.part, self.module = part, module
        self.weight = module.get_submodule(part.path).get_parameter("weight")
        device = self.weight.device
        self.rows_O = torch.cat([torch.arange(*run) for run in part.runs]).to(device)
        self.index_K = index_K.to(device).sort().values
        """int64 flat places in the part's (O x I) matrix, ascending"""
        self.base_K = self._read(self.index_K)
        """what the base has there, in the weight's type"""
        self.delta_K = Scattered(torch.zeros(len(index_K), device=device))
        self.laid_index_L = torch.empty(0, dtype=torch.int64, device=device)
        self.laid_base_L = self.base_K.new_empty(0)
        self.laid_delta_L = torch.empty(0, device=device)
        """entries whose change stays in the weight though they train no more"""
        self.origin_K: Tensor | None = None
        """where the entries were before the last move; None: they have not moved since it was asked for"""

    @property
    def name(self) -> str:
        return f"{self.part.path}.{self.part.name}"

    def matrix(self) -> Tensor:
        """Return the part's matrix as it is now, float32 (O, I)."""
        self.write()
        return part_weight(self.module, self.part).detach().float()

    def stored(self, index: Tensor) -> Tensor:
        """Return flat places in the module's weight, as it is stored."""
        row, column = self.rows_O[index // self.part.in_features], index % self.part.in_features
        return column * self.weight.shape[1] + row if self.part.is_transposed else row * self.weight.shape[1] + column

    def _read(self, index: Tensor) -> Tensor:
        return self.weight.detach().reshape(-1)[self.stored(index)]

    def _put(self, index: Tensor, values: Tensor) -> None:
        # Through `.data`: what autograd saved of the weight is not to be taken for changed between two passes.
        self.weight.data.view(-1)[self.stored(index)] = values.to(self.weight.dtype)

    def write(self) -> None:
        """Put the changes to work in the module's weight."""
        with torch.no_grad():
            self._put(self.index_K, self.base_K.float() + self.delta_K)

    def take_out(self) -> None:
        """Give the weight back what the base had, bit for bit."""
        self._put(self.index_K, self.base_K)
        self.put_aside()

    def put_aside(self) -> None:
        """Give the base back where a change stays though it trains no more; `lay_out` puts it there again."""
        self._put(self.laid_index_L, self.laid_base_L)

    def lay_out(self) -> None:
        """Put to work what trains no more."""
        self._put(self.laid_index_L, self.laid_base_L.float() + self.laid_delta_L)

    def gradient(self, grad_TO: Tensor, x_TI: Tensor) -> Tensor:
        """Return the active entries' gradient."""
        own_TO = grad_TO if self.part.rows is None else grad_TO[:, self.rows_O]
        gradient_OI = own_TO.T @ x_TI
        self.see(gradient_OI)
        return gradient_OI.reshape(-1)[self.index_K].float()

    def see(self, gradient_OI: Tensor) -> None:
        """Look at the dense gradient of one backward pass before it is let go."""

    @torch.no_grad()
    def move(self, index_K: Tensor, lay_down: bool) -> None:
        """Make other entries active, as many as before.

        Args:
            index_K: the new places.
            lay_down: what leaves keeps its change in the weight; else it goes back to the base.
        """
        index_K = index_K.sort().values
        assert len(index_K) == len(self.index_K)
        origin_K = _places(index_K, self.index_K)
        leaves_K = torch.ones_like(self.index_K, dtype=torch.bool)
        leaves_K[origin_K[origin_K >= 0]] = False
        if lay_down:
            self.write()
            self.laid_index_L = torch.cat([self.laid_index_L, self.index_K[leaves_K]])
            self.laid_base_L = torch.cat([self.laid_base_L, self.base_K[leaves_K]])
            self.laid_delta_L = torch.cat([self.laid_delta_L, self.delta_K[leaves_K]])
            order_L = self.laid_index_L.argsort()
            self._lay(order_L)
        else:
            self._put(self.index_K[leaves_K], self.base_K[leaves_K])
        taken_K = _places(index_K, self.laid_index_L)
        base_K, delta_K = self._read(index_K), torch.zeros_like(self.delta_K)
        stays_K, returns_K = origin_K >= 0, taken_K >= 0
        base_K[stays_K], delta_K[stays_K] = self.base_K[origin_K[stays_K]], self.delta_K[origin_K[stays_K]]
        base_K[returns_K] = self.laid_base_L[taken_K[returns_K]]
        delta_K[returns_K] = self.laid_delta_L[taken_K[returns_K]]
        rest_L = torch.ones_like(self.laid_index_L, dtype=torch.bool)
        rest_L[taken_K[returns_K]] = False
        self._lay(rest_L)
        self.index_K, self.base_K, self.origin_K = index_K, base_K, origin_K
        self.delta_K.copy_(delta_K)

    def _lay(self, chosen: Tensor) -> None:
        self.laid_index_L, self.laid_base_L = self.laid_index_L[chosen], self.laid_base_L[chosen]
        self.laid_delta_L = self.laid_delta_L[chosen]

    def numbers(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds, by short name."""
        laid = {"laid_index": self.laid_index_L, "laid_delta": self.laid_delta_L}
        return {"delta": self.delta_K.detach(), "index": self.index_K, **laid}

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        """Take back what `numbers` returned."""
        self.take_out()
        device = self.weight.device
        self.index_K, self.laid_index_L = numbers["index"].to(device), numbers["laid_index"].to(device)
        self.laid_delta_L = numbers["laid_delta"].to(device)
        self.base_K, self.laid_base_L = self._read(self.index_K), self._read(self.laid_index_L)
        self.delta_K.copy_(numbers["delta"])
        self.lay_out()
        self.write()


class EntriesTuning(Tuning):
    """Entries at work on one model."""

    def __init__(self, model: Model, entries: Sequence[Entries], method: dict[str, Any]) -> None:
        model.module.requires_grad_(False)
        self.model, self.entries = model, list(entries)
        self.provenance = Provenance(
            base_fingerprint=model.fingerprint, base_name=str(model.folder or ""), method=method
        )
        by_path: dict[str, list[Entries]] = {}
        for each in self.entries:
            by_path.setdefault(each.part.path, []).append(each)
        self._handles = []
        for path, members in by_path.items():
            module = model.module.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(partial(self._write, members)))
            self._handles.append(module.register_forward_hook(partial(self._tap, members)))

    def _write(self, members: list[Entries], module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for each in members:
            each.write()

    def _tap(self, members: list[Entries], module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x_TI = args[0].flatten(0, -2)
            for each in members:
                out = tap(out, x_TI, each.delta_K, each.gradient)
        return out

    def hold_in(self, dtype: torch.dtype) -> None:
        super().hold_in(dtype)
        # The base is what is held: a resumed run will find nothing else.
        for each in self.entries:
            each.restore({**each.numbers(), "delta": each.delta_K.detach().clone()})

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for each in self.entries:
            yield f"{each.name}.delta", each.delta_K

    @property
    def num_picked_from(self) -> int:
        return sum(each.part.out_features * each.part.in_features for each in self.entries)

    @contextmanager
    def at_start(self) -> Iterator[None]:
        for each in self.entries:
            each.put_aside()
        try:
            yield
        finally:
            for each in self.entries:
                each.lay_out()

    def take_change(self) -> Mapping[str, Tensor] | None:
        moved = {f"{each.name}.delta": each.origin_K for each in self.entries if each.origin_K is not None}
        for each in self.entries:
            each.origin_K = None
        return moved or None

    def numbers(self) -> dict[str, Tensor]:
        return {f"{each.name}.{key}": value for each in self.entries for key, value in each.numbers().items()}

    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        for each in self.entries:
            each.restore({key: numbers[f"{each.name}.{key}"] for key in each.numbers()})

    def delta(self) -> SparseDelta:
        """Return the change so far, as a copy."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for each in self.entries:
            index = torch.cat([each.stored(each.index_K), each.stored(each.laid_index_L)])
            value = torch.cat([each.delta_K.detach(), each.laid_delta_L])
            found.setdefault(f"{each.part.path}.weight", []).append((index[value != 0], value[value != 0]))
            shapes[f"{each.part.path}.weight"] = tuple(each.weight.shape)
        changes = {}
        for name, parts in found.items():
            index, order = torch.cat([index for index, _ in parts]).cpu().sort()
            changes[name] = SparseChange(index, torch.cat([value for _, value in parts]).cpu()[order], shapes[name])
        return SparseDelta(changes, self.provenance)

    def save(self, folder: Path) -> None:
        """Write `delta/`: places and values of the entries that have changed."""
        self.delta().save(folder / "delta")

    def merge(self) -> None:
        for each in self.entries:
            each.write()
        self._take_hooks_off()

    def detach(self) -> None:
        with torch.no_grad():
            for each in self.entries:
                each.take_out()
        self._take_hooks_off()

    def _take_hooks_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def num_active(part: Part, density: float) -> int:
    """Return how many entries of a part a density stands for, 1 at least."""
    return max(1, round(density * part.in_features * part.out_features))


def _places(wanted: Tensor, ascending: Tensor) -> Tensor:
    """Return where each wanted number stands in an ascending list, -1 where it does not."""
    if not len(ascending):
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[place] == wanted, place, -1)
