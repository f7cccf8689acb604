"""LoFiT: the heads that matter for a task are found, then each gets an offset.

Legend: H heads of a block, C features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from temper.core.errors import SettingError, TrainingError, nearest
from temper.core.schedule import Moment
from temper.delta.base import Provenance
from temper.delta.dense import DenseDelta
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, Tuning
from temper.tune.heads import Heads


class LoFiTTuning(Tuning):
    """Scalings or offsets at work on one model."""

    moves_numbers: ClassVar[bool] = True

    def __init__(self, model: Model, settings: LoFiT) -> None:
        model.module.requires_grad_(False)
        self.model, self.settings = model, settings
        self.heads = [Heads(model.module, block) for block in model.anatomy.blocks]
        self._handles = [
            model.module.get_submodule(each.part.path).register_forward_pre_hook(each.hook) for each in self.heads
        ]

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((each.name, each.vector_HC) for each in self.heads)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The heads that have offsets, as they are written in a recipe."""
        return tuple(
            f"{each.block.index}.{head}"
            for each in self.heads
            if each.is_chosen_H is not None
            for head in each.is_chosen_H.nonzero().flatten().tolist()
        )

    def choose(self, heads: Sequence[str]) -> None:
        """Begin to train offsets on some heads."""
        for each in self.heads:
            count = each.block.num_heads
            each.choose(torch.tensor([f"{each.block.index}.{head}" in heads for head in range(count)]))

    def largest(self) -> list[str]:
        """Return the heads whose scalings have the largest norms, largest first."""
        norms = torch.cat([each.vector_HC.detach().norm(dim=1) for each in self.heads])
        names = [f"{each.block.index}.{head}" for each in self.heads for head in range(each.block.num_heads)]
        order = norms.argsort(descending=True, stable=True).tolist()
        return [names[place] for place in order[: max(1, round(self.settings.share * len(names)))]]

    def before_step(self, moment: Moment) -> None:
        if not self.chosen and moment.progress >= self.settings.search:
            self.choose(self.largest())

    @property
    def is_result(self) -> bool:
        return bool(self.chosen)

    def after_training(self) -> None:
        if not self.chosen:
            raise TrainingError(
                f"tune.lofit.search: {self.settings.search} is the share of the stage in which heads are found, and "
                "no step began after it; train longer, lower it, or give the heads"
            )

    def take_change(self) -> Mapping[str, Tensor] | None:
        if not any(each.is_new for each in self.heads):
            return None
        for each in self.heads:
            each.is_new = False
        return {each.name: torch.full(each.vector_HC.shape, -1) for each in self.heads}

    def penalty(self) -> Tensor | None:
        if self.chosen:
            return None
        return self.settings.sparsity * torch.stack([each.vector_HC.abs().sum() for each in self.heads]).sum()

    def numbers(self) -> dict[str, Tensor]:
        held = super().numbers()
        for each in self.heads:
            if each.is_chosen_H is not None:
                held[f"{each.part.path}.is_chosen"] = each.is_chosen_H
        return held

    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        for each in self.heads:
            is_chosen_H = numbers.get(f"{each.part.path}.is_chosen")
            each.is_chosen_H = None if is_chosen_H is None else is_chosen_H.to(each.vector_HC.device)
            with torch.no_grad():
                each.vector_HC.copy_(numbers[each.name])
            each.is_new = False

    def delta(self) -> DenseDelta:
        """Return the change so far, as a copy: biases of the output projections."""
        changing = [each for each in self.heads if each.is_chosen_H is None or each.is_chosen_H.any()]
        found = self.settings.model_copy(update={"heads": self.chosen})
        provenance = Provenance(self.model.fingerprint, str(self.model.folder or ""), found.written())
        return DenseDelta(dict(each.change() for each in changing), provenance)

    def save(self, folder: Path) -> None:
        """Write `delta/`; the method in its provenance names the heads that were found."""
        self.delta().save(folder / "delta")

    def merge(self) -> None:
        delta = self.delta()
        self.detach()
        delta.apply(self.model, keep=False)

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class LoFiT(Tune, name="lofit"):
    """Find the attention heads that matter for the task, and train an offset for each.

    First every head's output z is scaled, z <- (1 + A) * z, and A (a number for each feature) trains with
    lambda ||A||_1 added to the objective. The K heads with the largest ||A||_2 are chosen and A is let go. Then
    z <- z + v trains, v being a vector for each chosen head, and nothing else. Saved, W_o v is a bias of the output
    projection.

    Paper: LoFiT: Localized Fine-tuning on LLM Representations, arXiv:2406.01563.
    Symbols: lambda is `sparsity`, K is `share` of all heads. Deviation: both steps are one stage, in which one learning
    rate schedule runs through both; A and v start at 0, not at random near it, so that the start is the base.
    """

    default_lr: ClassVar[float] = 5e-3
    leaves_base: ClassVar[bool] = True

    share: float = Field(0.03, gt=0, le=1, description="K over the number of heads: the share that gets offsets")
    search: float = Field(0.5, gt=0, lt=1, description="share of the stage in which the heads are found")
    sparsity: float = Field(5e-4, ge=0, description="lambda: factor of the sum of |A|")
    heads: tuple[str, ...] = Field(
        (),
        description="heads by block and number, in quotes ('3.0', '3.10'), that get offsets from the start; empty: "
        "they are found",
    )

    @field_validator("heads", mode="before")
    @classmethod
    def _heads_are_text(cls, written: object) -> object:
        for head in written if isinstance(written, list | tuple) else ():
            if isinstance(head, int | float):
                raise SettingError("heads", head, "is a number, and 3.1 is the same as 3.10", f"quote it: '{head}'")
        return written

    def idle(self) -> dict[str, str]:
        searching = ("share", "search", "sparsity")
        return dict.fromkeys(searching, "while heads are found, and `heads` names them") if self.heads else {}

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> LoFiTTuning:
        known = [f"{block.index}.{head}" for block in model.anatomy.blocks for head in range(block.num_heads)]
        for head in self.heads:
            if head not in known:
                raise SettingError("tune.lofit.heads", head, "is no head of this model", nearest(head, known))
        tuning = LoFiTTuning(model, self)
        if self.heads:
            tuning.choose(self.heads)
            tuning.take_change()
        return tuning
