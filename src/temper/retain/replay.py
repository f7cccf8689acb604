"""Replay: a share of every batch is data of what must not be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from temper.data.source import OneOrMore
from temper.retain.base import Retain, Share


class Replay(Retain, name="replay"):
    """Mix a share of earlier data into every batch.

    Each batch holds the share s of replayed examples exactly (to one example, carried over from batch to batch).

    Paper: Experience Replay for Continual Learning, arXiv:1811.11682.
    Deviation: no buffer is sampled while training; the earlier data is named, and drawn in shuffled epochs.
    """

    works_on_pieces: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"of": {"lab": {"skill": "shift", "num": 16}}}

    of: OneOrMore = Field(description="the earlier data: a source, or a list of them", min_length=1)
    share: float = Field(0.1, gt=0, lt=1, description="part of every batch, in examples or tokens as batches are cut")

    def shares(self) -> Sequence[Share]:
        return [Share(self.of, self.share)]
