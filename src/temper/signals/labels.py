"""A head that gives labels to documents or to tokens, on a model's hidden states.

Legend: T packed tokens, B documents, L labelled tokens or documents, K labels, D model width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from temper.core.files import write_json
from temper.data.pack import Batch
from temper.models.model import HEAD, Model
from temper.signals.forward import hidden_states
from temper.signals.pooling import Pooling, pool

WEIGHTS, NOTES = "head.safetensors", "head.json"


@dataclass
class LabelHead:
    """A linear layer without bias over pooled documents, or over tokens."""

    weight_KD: nn.Parameter
    """float32"""
    labels: tuple[str, ...]
    pooling: Pooling | None
    """how a document becomes one vector; None: each token is labelled"""
    is_causal: bool
    """whether a token sees only what precedes it, or its whole document"""

    @classmethod
    def new(cls, model: Model, labels: tuple[str, ...], pooling: Pooling | None, is_causal: bool, seed: int) -> Self:
        """Return a head with small random weights: same seed, same bits."""
        like = next(model.module.parameters())
        width = model.module.get_submodule(model.anatomy.head).weight.shape[1]
        weight_KD = torch.empty(len(labels), width).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
        return cls(nn.Parameter(weight_KD.to(like.device)), labels, pooling, is_causal)

    def logits(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits and labels, (L, K) float32 and (L,) int64, of documents or of labelled tokens, in order."""
        assert batch.labels_L is not None and batch.labelled_L is not None
        hidden_TD = hidden_states(model, batch, self.is_causal)
        if self.pooling is None:
            chosen_LD = hidden_TD.index_select(0, batch.labelled_L)
        else:
            chosen_LD = pool(hidden_TD, batch, self.pooling)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            return chosen_LD.float() @ self.weight_KD.t(), batch.labels_L

    def save(self, folder: Path) -> None:
        """Write it into a stage's folder, as `head/`."""
        (folder / HEAD).mkdir(parents=True)
        save_file({"weight": self.weight_KD.detach().contiguous()}, folder / HEAD / WEIGHTS)
        notes = {"labels": list(self.labels), "pooling": self.pooling, "is_causal": self.is_causal}
        write_json(folder / HEAD / NOTES, notes)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Read what `save` wrote, from `head/` itself."""
        notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        weight_KD = load_file(folder / WEIGHTS)["weight"].to(device)
        return cls(nn.Parameter(weight_KD), tuple(notes["labels"]), notes["pooling"], notes["is_causal"])
