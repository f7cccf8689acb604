"""The learned soup: mixing coefficients by gradient on held-out rows."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from temper.merge.base import Bench
from temper.merge.learning import Coefficients, Learned


class Shares(Coefficients):
    """Coefficients that are positive and sum to 1 over the models: alpha = softmax(raw)."""

    def values(self) -> Tensor:
        return torch.softmax(self.raw, 0)


class LearnedSoup(Learned, name="learned_soup"):
    """Average models with weights that are learned on held-out rows.

        argmin over alpha of sum_j l(f(x_j, sum_i alpha_i theta_i), y_j),    alpha = softmax(a)

    The a_i begin alike, so that the soup begins as the uniform one, and AdamW lowers the loss on `data`. With `per:
    tensor` every tensor has an alpha of its own (the paper's soup by layer).

    Paper: Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time, arXiv:2203.05482, appendix I.
    Deviation: the paper also learns a temperature beta on the logits, which a merged language model has no place to
    keep; it is 1 here. The gradient's norm is clipped at 1.
    """

    per: Literal["model", "tensor"] = Field("model", description="what has a weight of its own: model, or each tensor")

    def start(self, bench: Bench) -> Shares:
        names = bench.names if self.per == "tensor" else ()
        return Shares(torch.ones(len(bench.of), max(1, len(names)), 1), names)

    def report(self, bench: Bench, coefficients: Coefficients) -> dict[str, Any]:
        report = super().report(bench, coefficients)
        bench.say("soup: " + ", ".join(f"{share:.3f} {stage}" for stage, share in report["mean_coefficient"].items()))
        return report
