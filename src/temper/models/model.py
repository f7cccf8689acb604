"""A causal language model, its tokenizer, and where its parts are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.models.anatomy import Anatomy
from temper.models.families import FamilyLayout

HEAD = "head"
"""the folder of a stage that holds what its objective has learnt itself"""


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
