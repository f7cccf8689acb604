"""Emulated fine-tuning: what a small model learned, added to what a large one knows, while it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from temper.core.errors import SettingError
from temper.decode.base import Decode


class EmulatedFineTuning(Decode, name="emulated_fine_tuning"):
    """Shift a large base by what tuning changed in a small one.

        log p(x) = log p_base^L(x) + sum_i beta_i (log p_ft,i^S(x) - log p_base,i^S(x)) - log Z

    `of` names the large base first, then pairs of a small tuned model and the small base that it was made from; `beta`
    has a beta_i for each pair, or one for all. With one pair and beta 1 it is up-scaling (with sizes exchanged,
    down-scaling); several pairs trade behaviours off at generation.

    Paper: An Emulator for Fine-Tuning Large Language Models using Small Language Models, arXiv:2310.12962.
    Deviation: every token takes one pass of each model; the paper's speculative decoding is not offered.
    """

    beside: ClassVar[Mapping[str, Any]] = {"of": ["base", "train", "base"]}

    beta: list[FiniteFloat] | FiniteFloat = Field(1.0, description="strength of each pair's shift, or of all")

    def check(self, num_models: int) -> None:
        if num_models < 3 or num_models % 2 == 0:
            fix = "name the large base, then a tuned model and its base for each pair"
            raise SettingError("of", num_models, "models are not one and pairs", fix)
        num_pairs = num_models // 2
        if isinstance(self.beta, list) and len(self.beta) != num_pairs:
            raise SettingError(
                f"method.{self.method_name}.beta",
                self.beta,
                f"has {len(self.beta)} factors for {num_pairs} pairs",
                "give one each",
            )

    def combine(self, logprobs: Sequence[Tensor]) -> Tensor:
        pairs = list(zip(logprobs[1::2], logprobs[2::2], strict=True))
        betas = self.beta if isinstance(self.beta, list) else [self.beta] * len(pairs)
        total = logprobs[0]
        for beta, (tuned, untuned) in zip(betas, pairs, strict=True):
            total = total + beta * (tuned - untuned)
        return torch.log_softmax(total, -1)
