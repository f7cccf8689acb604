"""cDPO: DPO that expects some preferences to be the wrong way round."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from temper.objectives.dpo import DirectPreferenceOptimization
from temper.objectives.preference import Answers


class ConservativeDPO(DirectPreferenceOptimization, name="cdpo"):
    """Prefer the chosen answer with probability 1 - epsilon, not with certainty.

    L = -(1 - epsilon) log sigma(m) - epsilon log sigma(-m), m being DPO's margin. The gradient is zero where
    sigma(m) = 1 - epsilon, so the margin does not grow without bound.

    Paper: A note on DPO with noisy preferences & relationship to IPO (E. Mitchell, 2023); the margin is that of
    Direct Preference Optimization, arXiv:2305.18290.
    Symbols: epsilon is `flipped`; beta and pi_ref as in `dpo`.
    """

    flipped: float = Field(0.1, ge=0, lt=0.5, description="epsilon: share of pairs whose preference is wrong")

    def losses(self, margin_P: Tensor, chosen: Answers) -> Tensor:
        return -(1 - self.flipped) * logsigmoid(margin_P) - self.flipped * logsigmoid(-margin_P)
