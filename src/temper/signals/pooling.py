"""One vector for a document, from those of its tokens.

Legend: T packed tokens, B documents, D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from temper.data.pack import Batch

Pooling = Literal["last", "mean", "max"]


def pool(hidden_TD: Tensor, batch: Batch, how: Pooling) -> Tensor:
    """Return the last, the mean or the largest hidden states of each document, (B, D), float32."""
    if how == "last":
        ends_B = torch.tensor(batch.lengths).cumsum(0) - 1
        return hidden_TD.index_select(0, ends_B.to(hidden_TD.device)).float()
    documents = hidden_TD.float().split(list(batch.lengths))
    return torch.stack([document.mean(0) if how == "mean" else document.amax(0) for document in documents])
