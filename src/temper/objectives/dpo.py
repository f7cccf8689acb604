"""DPO: prefer the chosen answer, by the ratio to a reference model."""

from __future__ import annotations

from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from temper.objectives.preference import Answers, ReferencedPreference


class DirectPreferenceOptimization(ReferencedPreference, name="dpo"):
    """Raise the implied reward of the chosen answer over that of the rejected one.

    L = -log sigma(beta log(pi(y_w|x) / pi_ref(y_w|x)) - beta log(pi(y_l|x) / pi_ref(y_l|x))), the mean over pairs.

    Paper: Direct Preference Optimization: Your Language Model is Secretly a Reward Model, arXiv:2305.18290.
    Symbols: beta is `beta`, pi_ref is `reference`.
    """

    beta: PositiveFloat = Field(0.1, description="beta: how closely the reference is kept to; reward per nat of ratio")

    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        return self.beta * (chosen.ratio_P - rejected.ratio_P)

    def losses(self, margin_P: Tensor, chosen: Answers) -> Tensor:
        return -logsigmoid(margin_P)
