"""SimPO: prefer the chosen answer by its mean log-probability, without a reference."""

from __future__ import annotations

from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from temper.objectives.preference import Answers, Preference


class SimplePreferenceOptimization(Preference, name="simpo"):
    """Raise the mean log-probability of the chosen answer over the rejected one's, by a margin at least.

    L = -log sigma(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma), the mean over pairs.

    Paper: SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv:2405.14734.
    Symbols: beta is `beta`, gamma is `gamma`.
    """

    beta: PositiveFloat = Field(2.0, description="beta: reward per nat per token")
    gamma: float = Field(1.0, ge=0, description="gamma: the margin of rewards that is aimed at")

    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        return self.beta * (chosen.mean_P - rejected.mean_P)

    def losses(self, margin_P: Tensor, chosen: Answers) -> Tensor:
        return -logsigmoid(margin_P - self.gamma)
