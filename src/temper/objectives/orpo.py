"""ORPO: learn the chosen answer and prefer it, in one objective without a reference."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from temper.objectives.preference import Answers, Preference


class OddsRatioPreferenceOptimization(Preference, name="orpo"):
    """Maximise the likelihood of the chosen answer, and its odds over those of the rejected one.

    L = -1/|y_w| log p(y_w|x) - lambda log sigma(log(odds(y_w|x) / odds(y_l|x))), the mean over pairs, with
    odds(y|x) = P / (1 - P) and log P = 1/|y| log p(y|x).

    Paper: ORPO: Monolithic Preference Optimization without Reference Model, arXiv:2403.07691.
    Symbols: lambda is `strength`.
    Deviation: the likelihood term is a mean over pairs of means over the answer's tokens; the authors' code (and
    TRL's) takes one mean over all tokens of a batch, prompts included.
    """

    strength: float = Field(0.1, ge=0, description="lambda: weight of the odds ratio beside the likelihood")

    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        return _log_odds(chosen.mean_P) - _log_odds(rejected.mean_P)

    def losses(self, margin_P: Tensor, chosen: Answers) -> Tensor:
        return -chosen.mean_P - self.strength * logsigmoid(margin_P)


def _log_odds(logprob_P: Tensor) -> Tensor:
    """Return log(P / (1 - P)); a probability that rounds to 1 counts as the largest float below it."""
    # log(1 - P) without cancellation: expm1 where P is near 1, log1p where it is near 0 (both branches stay finite).
    capped_P = logprob_P.clamp(max=-torch.finfo(logprob_P.dtype).eps)
    near_one_P = torch.log(-torch.expm1(capped_P.clamp(min=-1.0)))
    near_zero_P = torch.log1p(-torch.exp(capped_P.clamp(max=-0.5)))
    return logprob_P - torch.where(capped_P > -0.6931, near_one_P, near_zero_P)
