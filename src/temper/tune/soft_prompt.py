"""Soft prompt: a few vectors before every document train, and the model does not.

Legend: P vectors, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from temper.core.errors import SettingError
from temper.delta.base import Provenance
from temper.delta.prompt import PromptDelta
from temper.models.model import Model
from temper.models.prompt import embed
from temper.signals.calibration import Calibration
from temper.tune.base import Tune, Tuning


class SoftPromptTuning(Tuning):
    """A prompt at work on one model, behind the prompts that it has."""

    def __init__(self, model: Model, start_PD: Tensor, provenance: Provenance) -> None:
        model.module.requires_grad_(False)
        self.model, self.provenance, self.before = model, provenance, model.prompts
        self.vectors_PD = nn.Parameter(start_PD)
        model.prompts = (*self.before, self.vectors_PD)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "soft_prompt", self.vectors_PD

    def save(self, folder: Path) -> None:
        """Write `delta/` in PEFT's layout."""
        PromptDelta(self.vectors_PD.detach().cpu().clone(), self.provenance).save(folder / "delta")

    def merge(self) -> None:
        """Leave the prompt with the model, frozen: no weight can take it in."""
        self.model.prompts = (*self.before, self.vectors_PD.detach())

    def detach(self) -> None:
        self.model.prompts = self.before


class SoftPrompt(Tune, name="soft_prompt"):
    """Train P (p x e) alone, read before the embeddings of every document: max over P of log p(Y | [P; X]).

    The frozen model reads [P; X], of which the positions of P predict nothing. A prompt that an earlier stage trained
    stays before this one. `start` says where P begins: `vocabulary`, embeddings of tokens drawn from the vocabulary;
    `text`, those of the tokens of `text`, cut or repeated to length; `uniform`, U(-0.5, 0.5); `normal`, N(0, 1).

    Paper: The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691.
    Symbols: p is `length`, e the width of the model's embedding. Equal to PEFT's prompt tuning, whose random start is
    `normal`; saved, it is a PEFT adapter. Deviation: decoders instead of T5; `vocabulary` draws from all ordinary
    tokens and not from the 5,000 most frequent; Adam instead of Adafactor, therefore another learning rate (of 1e-2,
    3e-2 and 1e-1 the default did best on the lab in the mean over four seeds, by less than seeds differ).
    """

    default_lr: ClassVar[float] = 3e-2
    leaves_base: ClassVar[bool] = True
    starts_at_base: ClassVar[bool] = False

    length: PositiveInt = Field(20, description="p, vectors of the prompt; each takes a position of every document")
    start: Literal["vocabulary", "text", "uniform", "normal"] = Field(
        "vocabulary", description="where the vectors begin: vocabulary, text, uniform or normal"
    )
    text: str | None = Field(None, min_length=1, description="with `start: text`, the text whose embeddings they are")

    @model_validator(mode="after")
    def _text_for_a_text(self) -> Self:
        if (self.start == "text") != (self.text is not None):
            fix = "give `start: text` and a `text` together, or neither"
            raise SettingError("tune.soft_prompt.text", self.text, f"does not go with start: {self.start}", fix)
        return self

    @property
    def prompt_length(self) -> int:
        return self.length

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> SoftPromptTuning:
        if model.num_positions <= self.length:
            reason = f"vectors leave no room in the model's {model.num_positions} positions"
            raise SettingError("tune.soft_prompt.length", self.length, reason, "take fewer")
        provenance = Provenance(
            base_fingerprint=model.fingerprint, base_name=str(model.folder or ""), method=self.written()
        )
        return SoftPromptTuning(model, self._start(model, seed), provenance)

    def _start(self, model: Model, seed: int) -> Tensor:
        embedding: Tensor = model.module.get_submodule(model.anatomy.embedding).get_parameter("weight")
        if self.start in ("uniform", "normal"):
            shape, generator = (self.length, embedding.shape[1]), torch.Generator().manual_seed(seed)
            draw = torch.rand if self.start == "uniform" else torch.randn
            drawn_PD = draw(shape, generator=generator, device="cpu") - (0.5 if self.start == "uniform" else 0.0)
            return drawn_PD.to(embedding.device)
        tokens = self._text_tokens(model) if self.start == "text" else self._drawn_tokens(model, seed)
        tokens_P = torch.tensor(tokens, device=embedding.device)
        return embed(model, tokens_P).detach().clone().float()

    def _text_tokens(self, model: Model) -> list[int]:
        """Return the tokens of the text, again and again up to the length."""
        tokens: list[int] = model.tokenizer(self.text)["input_ids"]
        if not tokens or max(tokens) >= model.module.get_input_embeddings().num_embeddings:
            reason = "has tokens that the model does not embed" if tokens else "has no token"
            raise SettingError("tune.soft_prompt.text", self.text, reason, "write another text")
        return (tokens * -(-self.length // len(tokens)))[: self.length]

    def _drawn_tokens(self, model: Model, seed: int) -> list[int]:
        """Return ordinary tokens, no two the same where there are so many."""
        num_embedded: int = model.module.get_input_embeddings().num_embeddings
        special = set(model.tokenizer.all_special_ids)
        ordinary = [token for token in range(min(len(model.tokenizer), num_embedded)) if token not in special]
        drawn: list[int] = (
            np.random.default_rng(seed).choice(ordinary, self.length, self.length > len(ordinary)).tolist()
        )
        return drawn
