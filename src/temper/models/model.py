"""A causal language model, its tokenizer, and where its parts are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from temper.models.anatomy import Anatomy
from temper.models.families import FamilyLayout

HEAD = "head"
"""the folder of a stage that holds what its objective has learnt itself"""


class Sums(Protocol):
    """Takes a pass's gradients of the matrices over the vocabulary (`models/sums.py`)."""

    factor: float
    """by what the pass's loss is multiplied"""

    def embed(self, tokens: Tensor) -> Tensor | None:
        """Return what the embedding gives for tokens, (..., D), None where autograd takes its gradient."""
        ...

    def begin_head(self, weight_VD: Tensor) -> Tensor | None:
        """Return the sum that the gradient of the head is to be added to, None where autograd does that."""
        ...

    def promise(self, total: Tensor) -> None:
        """Say that a sum of log-probabilities, whose gradient the head's sum now has, is the pass's loss."""
        ...


class Prefix(Protocol):
    """Keeps what blocks that do not train give (`engine/prefix.py`)."""

    def in_place(
        self, tokens_T: Tensor, positions_T: Tensor, lengths: Sequence[int], is_causal: bool
    ) -> AbstractContextManager[None]:
        """Return the context in which the backbone, given these documents, begins behind the first blocks."""
        ...


class Fusion(Protocol):
    """Other models whose next-token distributions are combined with a model's own, token by token."""

    @property
    def members(self) -> Sequence[Model]:
        """The other models; all read the same tokens."""
        ...

    def combine(self, logprobs: Sequence[Tensor]) -> Tensor:
        """Return the combination's log-probabilities (N, V) from the model's own, first, and the members'."""
        ...


@dataclass
class Model:
    """What every stage reads and writes."""

    module: Any
    """the transformers causal LM (`PreTrainedModel`)"""
    tokenizer: Any
    """its `PreTrainedTokenizerFast`"""
    anatomy: Anatomy
    fingerprint: str
    """names weights, configuration and tokenizer by content, as they were when the model was made or loaded"""
    folder: Path | None = None
    """where its weights lie as safetensors, None for one that was made in memory"""
    layout: FamilyLayout | None = None
    """how its family was described, None for a family that Temper knows"""
    is_changed: bool = False
    """trained, or changed by a delta, since then: the fingerprint does not name what it is now"""
    head: Path | None = None
    """folder of a head that an objective trained on its hidden states"""
    notes: tuple[str, ...] = ()
    """what was chosen where the checkpoint says nothing, such as a padding token"""
    fusion: Fusion | None = None
    """what it is combined with while it generates or is scored; such a model can be neither trained nor saved"""
    prompts: tuple[Tensor, ...] = ()
    """soft prompts that it reads before the tokens of every document, float32 (P, D) each, in their order"""

    prefix: Prefix | None = None
    """what has kept what the first blocks give, None where these are computed"""
    sums: Sums | None = None
    """what takes the gradients of the pass that runs, None where autograd alone does"""

    @property
    def prompt_length(self) -> int:
        """How many positions its soft prompts take."""
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def num_positions(self) -> int:
        """How many tokens of a document it can read: its positions, less those of its soft prompts."""
        return int(self.module.config.get_text_config().max_position_embeddings) - self.prompt_length

    @property
    def members(self) -> tuple[Model, ...]:
        """The model itself and those that it is combined with."""
        return (self, *(() if self.fusion is None else self.fusion.members))
