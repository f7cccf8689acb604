"""Sizes of a small model, in any of the families: one description, and the family's own configuration for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from temper.core.errors import SettingError
from temper.core.methods import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt2", "gpt_neox", "opt"]
MODEL_TYPES = {"gemma3": "gemma3_text"}
"""names that transformers gives to families, where they are others"""
UNGATED = frozenset({"gpt2", "gpt_neox", "opt"})
"""families whose MLP has no gate; it is 4 widths wide there, and 8/3 (rounded up to 32) elsewhere"""
SAME_HEADS = UNGATED
"""families without grouped heads"""


class Architecture(Settings):
    """A decoder's family and sizes. Embedding and head are tied, nothing is dropped out."""

    family: Family = Field("llama", description="whose architecture")
    width: int = Field(128, ge=8, description="numbers that stand for a token between blocks")
    layers: int = Field(2, ge=1, description="blocks")
    heads: int = Field(4, ge=1, description="attention heads of a block")
    kv_heads: int | None = Field(None, ge=1, description="heads of keys and values; default: as many as heads")
    max_positions: int = Field(512, ge=8, description="longest sequence, in tokens")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % (2 * self.heads):
            near = 2 * self.heads * max(1, round(self.width / (2 * self.heads)))
            reason = f"is not an even number for each of {self.heads} heads"
            raise SettingError("width", self.width, reason, f"try {near}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise SettingError("kv_heads", self.kv_heads, f"does not divide {self.heads} heads", "try 1")
        if self.kv_heads not in (None, self.heads) and self.family in SAME_HEADS:
            raise SettingError("kv_heads", self.kv_heads, f"has no effect on {self.family}", "leave it out")
        return self

    def config(self, vocab_size: int) -> PreTrainedConfig:
        """Return the family's configuration."""
        from transformers import AutoConfig

        head_dim = self.width // self.heads
        settings: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": True,
            # The tokenizer's are put in when the model is made; a family's own may lie beyond a small vocabulary.
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        if self.family not in UNGATED:
            settings |= {
                "intermediate_size": -(-self.width * 8 // 96) * 32,
                "num_key_value_heads": self.kv_heads or self.heads,
            }
        if self.family in ("mistral", "qwen3", "gemma2", "gemma3"):
            settings |= {"head_dim": head_dim}
        if self.family in ("gemma2", "gemma3"):
            settings |= {"query_pre_attn_scalar": head_dim}
        if self.family == "phi3":
            settings |= {"original_max_position_embeddings": self.max_positions}
        if self.family == "gpt2":
            settings |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        if self.family == "gpt_neox":
            settings |= {"intermediate_size": 4 * self.width}
        if self.family == "opt":
            settings |= {"ffn_dim": 4 * self.width, "word_embed_proj_dim": self.width, "dropout": 0.0}
        return AutoConfig.for_model(MODEL_TYPES.get(self.family, self.family), **settings)
