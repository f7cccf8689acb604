"""Full fine-tuning: every number of the model moves."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from temper.core.errors import SettingError, nearest
from temper.models.load import save_model
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, Tuning


class FullTuning(Tuning):
    """The model's own parameters as float32 master weights."""

    def __init__(self, model: Model, trained: list[tuple[str, nn.Parameter]], stored: dict[str, torch.dtype]) -> None:
        self.model, self.trained, self.stored = model, trained, stored

    def hold_in(self, dtype: torch.dtype) -> None:
        """Leave what is frozen in float32: it is part of the result, and must not be rounded on its way."""

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.trained

    def save(self, folder: Path) -> None:
        """Write `model/` in the precision that the base is stored in."""
        self.merge()
        save_model(self.model, folder / "model")

    def merge(self) -> None:
        """Round the weights to the precision that the base is stored in; frozen ones come back as they were."""
        for name, parameter in self.model.module.named_parameters():
            parameter.data = parameter.data.to(self.stored[name])

    def detach(self) -> None:
        for _, parameter in self.trained:
            parameter.requires_grad_(False)


class Full(Tune, name="full"):
    """Train every parameter: w <- w - update(gradient). Tied embeddings are one parameter and stay tied.

    The weights are held in float32 while they train and are stored in the base's precision.

    Paper: Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146.
    """

    default_lr: ClassVar[float] = 1e-5

    freeze: tuple[str, ...] = Field(
        (), description="parameters that stay as they are: patterns of their names, such as *embed_tokens*"
    )

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> FullTuning:
        names = [name for name, _ in model.module.named_parameters()]
        for pattern in self.freeze:
            if not any(fnmatch(name, pattern) for name in names):
                raise SettingError("tune.full.freeze", pattern, "matches no parameter", nearest(pattern, names))
        trained, stored = [], {}
        for name, parameter in model.module.named_parameters():
            moves = not any(fnmatch(name, pattern) for pattern in self.freeze)
            parameter.requires_grad_(moves)
            stored[name] = parameter.dtype
            parameter.data = parameter.data.float()
            if moves:
                trained.append((name, parameter))
        if not trained:
            raise SettingError("tune.full.freeze", list(self.freeze), "leaves nothing to train", "freeze less")
        return FullTuning(model, trained, stored)
