"""Contrastive decoding: what a strong model says more than a weak one.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from temper.core.errors import SettingError
from temper.decode.base import Decode


class ContrastiveDecoding(Decode, name="contrastive"):
    """Take from what an expert says what an amateur says as well, among the tokens that the expert finds plausible.

        s(x) = (1 + beta) s_e(x) - beta s_a(x)  where  p_e(x) >= alpha max_v p_e(v),  else  -inf;    p = softmax(s)

    `of` names the expert, then the amateur: a smaller model, an earlier stage, the base. s_e and s_a are their logits.

    Paper: Contrastive Decoding Improves Reasoning in Large Language Models, arXiv:2309.09117, whose form this is;
    first, Contrastive Decoding: Open-ended Text Generation as Optimization, arXiv:2210.15097 (s = log p_e - log p_a).
    Symbols: alpha is `alpha`, beta is `beta`. Deviation: a share `rest` of the probability is the expert's own,
    p = (1 - rest) softmax(s) + rest p_e, so that a text with an implausible token has a finite perplexity; 0 is the
    paper's.
    """

    alpha: float = Field(0.1, gt=0, le=1, description="alpha: a token counts from this share of the likeliest one's on")
    beta: float = Field(0.5, ge=0, description="beta: strength of the contrast; 0 is the expert alone")
    rest: float = Field(1e-6, ge=0, lt=1, description="share of the probability that is the expert's for all tokens")

    def check(self, num_models: int) -> None:
        if num_models != 2:
            raise SettingError("of", num_models, "models are no pair", "name the expert, then the amateur")

    def combine(self, logprobs: Sequence[Tensor]) -> Tensor:
        expert_NV, amateur_NV = logprobs
        is_implausible_NV = expert_NV < expert_NV.amax(-1, keepdim=True) + math.log(self.alpha)
        score_NV = (1 + self.beta) * expert_NV - self.beta * amateur_NV
        contrast_NV = torch.log_softmax(score_NV.masked_fill(is_implausible_NV, -math.inf), -1)
        if self.rest == 0:
            return contrast_NV
        return torch.logaddexp(contrast_NV + math.log1p(-self.rest), expert_NV + math.log(self.rest))
