"""What a row of data becomes: sequences of tokens with a loss weight for each, and the row's columns.

Legend: T tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Format = Literal["text", "messages", "completion", "preference", "label", "class", "tags", "pair"]
"""Shapes of a row, after sharegpt and alpaca have been brought to `messages` or `completion`:

- `text`: `{"text": str}`
- `messages`: `{"messages": [{"role": str, "content": str, "weight"?: float, "spans"?: [...]}], "tools"?: [...]}`
- `completion`: `{"prompt": str | messages, "completion": str | messages}`
- `preference`: `{"prompt": str | messages, "chosen": str | messages, "rejected": str | messages}`
- `label`: `{"prompt": str | messages, "completion": str | messages, "label": bool}`
- `class`: `{"text": str, "class": str}`
- `tags`: `{"words": [str], "tags": [str]}`, a tag for each word
- `pair`: `{"anchor": str, "positive": str, "negative"?: str}`
"""


@dataclass(frozen=True)
class Origin:
    """Where a row was written down."""

    file: str
    line: int | None
    """1-based line of a text file, or 1-based row of a Parquet file or dataset"""

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Row:
    """One example as written: its content by `format`, and every other column."""

    format: Format
    content: Mapping[str, Any]
    columns: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True)
class Sequence:
    """One run of tokens that the model reads as a document of its own.

    `weights_T[t]` is the loss weight of predicting `tokens_T[t]` from all that precedes it; the first
    token's weight is always 0, since nothing precedes it.
    """

    tokens_T: NDArray[np.int32]
    weights_T: NDArray[np.float32]
    role: str = "response"
    """what the objective takes it for: `response`, `chosen`, `rejected`, ..."""
    num_truncated: int = 0
    """tokens that were cut off to fit the length, 0 unless truncation was asked for"""
    labels_T: NDArray[np.int32] | None = None
    """which label each token is to be given, -1 for none; None where nothing is labelled"""

    def __post_init__(self) -> None:
        assert self.tokens_T.shape == self.weights_T.shape and self.tokens_T.ndim == 1
        assert len(self.tokens_T) > 0 and self.weights_T[0] == 0


@dataclass(frozen=True)
class Example:
    """One row, encoded: the sequences that an objective asked for, and the row's columns."""

    sequences: tuple[Sequence, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = Origin("<memory>", None)

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.tokens_T) for sequence in self.sequences)
