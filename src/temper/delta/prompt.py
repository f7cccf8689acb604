"""Soft prompts as a change: vectors that are read before every document, in PEFT's layout.

A prompt changes no weight. Applied it is attached, undone it is taken off, and several follow one another in the order
in which they were applied. What asks for weights (a merge, a compressor, a sum with a change of weights) is refused.

Legend: P vectors, D width of the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from temper.core.errors import ModelError
from temper.core.files import write_json
from temper.delta.base import CONFIG_FILE, WEIGHTS_FILE, Delta, Provenance, Undo
from temper.delta.dense import merged_provenance
from temper.models.fingerprint import PROMPT_NAME
from temper.models.model import Model


class TakeOff(Undo):
    """Gives a model the prompts back that it had before."""

    def __init__(self, model: Model) -> None:
        self.model, self.prompts = model, model.prompts

    def undo(self) -> None:
        self.model.prompts = self.prompts


class PromptDelta(Delta, kind="prompt"):
    """Vectors (P, D) that stand behind the prompts that are there, before the tokens."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    is_attached: ClassVar[bool] = True

    def __init__(self, vectors_PD: Tensor, provenance: Provenance | None = None) -> None:
        self.vectors_PD = vectors_PD.float()
        self.provenance = provenance or Provenance()

    def names(self) -> Sequence[str]:
        """Raise ModelError: a caller that works on weights would drop the prompt."""
        self._refuse()

    def update(self, name: str, like: Tensor | None = None) -> Tensor:
        self._refuse()

    def scale(self, factor: float) -> Delta:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError(
            "a soft prompt stands before the text and changes no weight: it can be attached and taken off, and neither "
            "scaled, merged, compressed nor added to changes of weights; take the change since the stage that made the "
            "prompt, or train under it (`with`) so that it is taken off"
        )

    @property
    def num_values(self) -> int:
        return self.vectors_PD.numel()

    @classmethod
    def add_same(cls, deltas: Sequence[Self]) -> PromptDelta:
        joined = torch.cat([delta.vectors_PD for delta in deltas])
        return PromptDelta(joined, merged_provenance(deltas) if len(deltas) > 1 else deltas[0].provenance)

    def to(self, dtype: torch.dtype) -> PromptDelta:
        """Return it rounded to what another dtype can hold; it is computed with, and stored, in float32."""
        return PromptDelta(self.vectors_PD.to(dtype), self.provenance)

    def fit(self, module: nn.Module) -> PromptDelta:
        """Return the delta.

        Raises:
            ModelError: vectors of another width than the module's embedding.
        """
        model: Any = module
        width: int = model.get_input_embeddings().weight.shape[1]
        if self.vectors_PD.shape[1] != width:
            raise ModelError(
                f"a soft prompt of width {self.vectors_PD.shape[1]} does not go before embeddings of width {width}; "
                "use the model that it was trained with"
            )
        return self

    def apply(self, model: Model | nn.Module, keep: bool = True) -> Undo:
        """Attach the prompt, frozen, behind those that are there."""
        if not isinstance(model, Model):
            raise ModelError("a soft prompt is no part of a module; attach it to a Model (`temper.load_model`)")
        self.fit(model.module)
        take_off = TakeOff(model)
        model.prompts = (*model.prompts, self.vectors_PD)
        model.is_changed = True
        return take_off

    def write(self, folder: Path) -> None:
        save_file(
            {PROMPT_NAME: self.vectors_PD.detach().cpu().contiguous()}, folder / WEIGHTS_FILE, metadata={"format": "pt"}
        )
        length, width = self.vectors_PD.shape
        config = {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.provenance.base_name or None,
            "inference_mode": True,
            "num_virtual_tokens": length,
            "token_dim": width,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def read(cls, folder: Path, provenance: Provenance | None) -> Self:
        """Read a prompt, PEFT's included.

        Raises:
            ModelError: a setting that is not prompt tuning of a decoder; names its key.
        """
        file, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for key, value in config.items():
            off: tuple[object, ...] = (None, False, [], {})
            if not (key in _FREE or value in _ALLOWED.get(key, off)):
                raise ModelError(f"{file}: {key}: {value!r} is not supported; only prompt tuning of a decoder is")
        if not weights.is_file():
            raise ModelError(f"{folder}: holds no {WEIGHTS_FILE}; save the adapter as safetensors")
        tensors = load_file(weights)
        if set(tensors) != {PROMPT_NAME}:
            raise ModelError(f"{weights}: holds {', '.join(sorted(tensors))} where {PROMPT_NAME} alone is expected")
        vectors_PD = tensors[PROMPT_NAME]
        told = (config.get("num_virtual_tokens"), config.get("token_dim"))
        if vectors_PD.ndim != 2 or tuple(vectors_PD.shape) != told:
            raise ModelError(
                f"{weights}: {PROMPT_NAME}: has shape {tuple(vectors_PD.shape)} and {file.name} says {told}"
            )
        return cls(
            vectors_PD, provenance or Provenance(base_name=config.get("base_model_name_or_path") or "", version="")
        )


_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("PROMPT_TUNING",),
    "task_type": ("CAUSAL_LM", None),
    "num_transformer_submodules": (1, None),
}
"""what PEFT's settings may be; one that is neither here nor free must be off"""
_FREE = frozenset({
    "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "num_virtual_tokens",
    "token_dim", "num_attention_heads", "num_layers", "prompt_tuning_init", "prompt_tuning_init_text",
    "tokenizer_name_or_path", "tokenizer_kwargs",
})  # fmt: skip
