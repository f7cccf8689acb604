"""A causal language model, its tokenizer, and where its parts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from temper.models.anatomy import Anatomy
from temper.models.families import FamilyLayout

HEAD = "head"
"""the folder of a stage that holds what its objective has learnt itself"""


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
