"""S2FT: a few heads and channels train, as a dense slice at the front of their matrices.

Legend: T tokens, I input features, O output features, S columns of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from temper.delta.base import Provenance
from temper.delta.low_rank import Factors, LowRankDelta
from temper.models.anatomy import Block, Part, part_slices
from temper.models.model import Model
from temper.models.permute import inverse, permute_channels, permute_heads
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, Tuning
from temper.tune.tap import tap


class Slice:
    """The first S columns of a permuted matrix, and what is added to them."""

    def __init__(self, module: nn.Module, part: Part, columns_S: Tensor) -> None:
        self.module, self.part, self.columns_S = module, part, columns_S
        self.base_OS = self._view().clone()
        self.delta_OS = nn.Parameter(torch.zeros_like(self.base_OS, dtype=torch.float32))

    def _view(self) -> Tensor:
        (whole_OI,) = part_slices(self.module, self.part)
        return whole_OI.data[:, : len(self.columns_S)]

    def hold(self) -> None:
        """Take the base as it is held now."""
        self.base_OS = self._view().clone()

    def write(self) -> None:
        """Put the change to work in the module's weight."""
        with torch.no_grad():
            self._view().copy_(self.base_OS.float() + self.delta_OS)

    def take_out(self) -> None:
        """Give the weight back what the base had."""
        self._view().copy_(self.base_OS)

    def gradient(self, grad_TO: Tensor, x_TS: Tensor) -> Tensor:
        """Return the slice's gradient: partial back-propagation."""
        return (grad_TO.T @ x_TS).float()

    def factors(self) -> Factors:
        """Return the change as a low-rank one on the columns' own places: A picks them out."""
        a_RI = torch.zeros(len(self.columns_S), self.part.in_features)
        a_RI[torch.arange(len(self.columns_S)), self.columns_S.cpu()] = 1.0
        return Factors(a_RI, self.delta_OS.detach().cpu().clone(), 1.0, self.part.is_transposed)


class S2FTTuning(Tuning):
    """Permuted blocks and the slices that train in them."""

    def __init__(self, model: Model, settings: S2FT, orders: list[tuple[Block, Tensor, Tensor]]) -> None:
        model.module.requires_grad_(False)
        self.model, self.orders = model, orders
        self.provenance = Provenance(
            base_fingerprint=model.fingerprint, base_name=str(model.folder or ""), method=settings.written()
        )
        self.slices: list[Slice] = []
        for block, heads_G, channels_C in orders:
            permute_heads(model.module, block, heads_G)
            permute_channels(model.module, block, channels_C)
            parts = {part.name: part for part in block.parts}
            group = parts["o"].in_features // len(heads_G)
            chosen_G = heads_G[: _count(settings.head_share, len(heads_G))]
            columns = (chosen_G[:, None] * group + torch.arange(group)).reshape(-1)
            self.slices.append(Slice(model.module, parts["o"], columns))
            chosen_C = channels_C[: _count(settings.channel_share, len(channels_C))]
            self.slices.append(Slice(model.module, parts["down"], chosen_C))
        self._handles = []
        for each in self.slices:
            module = model.module.get_submodule(each.part.path)
            self._handles.append(module.register_forward_pre_hook(lambda _, __, each=each: each.write()))
            self._handles.append(module.register_forward_hook(partial(_tap, each)))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for each in self.slices:
            yield f"{each.part.path}.slice", each.delta_OS

    @property
    def num_picked_from(self) -> int:
        return sum(each.delta_OS.numel() for each in self.slices)

    def hold_in(self, dtype: torch.dtype) -> None:
        super().hold_in(dtype)
        for each in self.slices:
            each.hold()

    def save(self, folder: Path) -> None:
        """Write `delta/` in PEFT's layout, the columns in their own places."""
        factors = {each.part.path: each.factors() for each in self.slices}
        LowRankDelta(factors, self.provenance).save(folder / "delta")

    def merge(self) -> None:
        for each in self.slices:
            each.write()
        self._undo()

    def detach(self) -> None:
        for each in self.slices:
            each.take_out()
        self._undo()

    def _undo(self) -> None:
        """Take the hooks off and bring heads and channels back into their order."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for block, heads_G, channels_C in self.orders:
            permute_heads(self.model.module, block, inverse(heads_G))
            permute_channels(self.model.module, block, inverse(channels_C))
        self.orders = []


class S2FT(Tune, name="s2ft"):
    """Train the slices of o and down that read a few heads and channels; all else is frozen.

    In each block some heads and channels are chosen. Heads are permuted with the rows of q, k, v and the columns of o,
    channels with the rows of gate, up and the columns of down, so that the chosen come first and the model computes
    the same; then W_o[:, :s] and W_down[:, :s] train in place. Their gradient is grad^T x[:, :s], for which s columns
    of the inputs are saved and no more (partial back-propagation). Saved, the order is the base's own.

    Paper: S^2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity, arXiv:2412.06289.
    Symbols: s is `head_share` and `channel_share` of the columns, one head and one channel at least. Heads that share
    keys and values (grouped queries) are chosen together. Deviation: slices of o and down only, as the paper
    recommends; chosen at random or by weight, not by activations or gradients. What trains are the changes to the
    slices, so that an optimizer's `weight_decay` pulls them to the base and not to 0.
    """

    default_lr: ClassVar[float] = 2e-4

    head_share: float = Field(0.1, gt=0, le=1, description="share of a block's heads that train")
    channel_share: float = Field(0.05, gt=0, le=1, description="share of a block's MLP channels that train")
    choose: Literal["random", "weight"] = Field("random", description="at random, or those with the largest weights")

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> S2FTTuning:
        generator = torch.Generator().manual_seed(seed)
        orders = []
        for block in model.anatomy.blocks:
            parts = {part.name: part for part in block.parts}
            heads_G = self._order(model.module, parts["o"], block.num_kv_heads, generator)
            channels_C = self._order(model.module, parts["down"], parts["down"].in_features, generator)
            orders.append((block, heads_G, channels_C))
        return S2FTTuning(model, self, orders)

    def _order(self, module: nn.Module, part: Part, count: int, generator: torch.Generator) -> Tensor:
        """Return all units of a part's columns, the chosen first."""
        if self.choose == "random":
            return torch.randperm(count, generator=generator)
        (whole_OI,) = part_slices(module, part)
        norms = whole_OI.detach().float().reshape(part.out_features, count, -1).square().sum((0, 2))
        return norms.argsort(descending=True, stable=True).cpu()


def _count(share: float, total: int) -> int:
    return max(1, round(share * total))


def _tap(each: Slice, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return out
    # A copy, so that autograd does not hold the whole input by a view of it.
    x_TS = args[0].flatten(0, -2)[:, : len(each.columns_S)].detach().clone()
    return tap(out, x_TS, each.delta_OS, each.gradient)
