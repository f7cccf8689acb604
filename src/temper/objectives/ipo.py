"""IPO: bring the preference margin to a fixed distance."""

from __future__ import annotations

from pydantic import Field, PositiveFloat
from torch import Tensor

from temper.objectives.preference import Answers, ReferencedPreference


class IdentityPreferenceOptimization(ReferencedPreference, name="ipo"):
    """Bring the difference of log-ratios to 1 / (2 tau) instead of raising it without bound.

    L = (h - 1 / (2 tau))^2, h = log(pi(y_w|x) / pi_ref(y_w|x)) - log(pi(y_l|x) / pi_ref(y_l|x)), the mean over pairs.

    Paper: A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv:2310.12036 (its
    equation 17). Symbols: tau is `tau`, pi_ref is `reference`.
    Deviation: each log-ratio is divided by its answer's number of tokens, as TRL does on its authors' word; the
    paper's equation does not say so.
    """

    tau: PositiveFloat = Field(0.1, description="tau: the margin aimed at is 1 / (2 tau), in nats per token")

    def margin(self, chosen: Answers, rejected: Answers) -> Tensor:
        return chosen.ratio_P / chosen.length_P - rejected.ratio_P / rejected.length_P

    def losses(self, margin_P: Tensor, chosen: Answers) -> Tensor:
        return (margin_P - 1 / (2 * self.tau)).square()
