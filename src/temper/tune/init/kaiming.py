"""The start of LoRA's paper: A random, B zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.init.base import LowRankInit, Start, Wanted


class Kaiming(LowRankInit, name="kaiming"):
    """A uniform as a linear layer starts (between -1/sqrt(in) and 1/sqrt(in)), B at zero.

    Paper: LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685.
    Deviation: uniform, as in the authors' code; the paper says Gaussian.
    """

    def start(
        self, model: Model, wanted: Sequence[Wanted], generator: torch.Generator, calibration: Calibration | None
    ) -> Sequence[Start]:
        starts = []
        for each in wanted:
            bound = 1 / math.sqrt(each.part.in_features)  # Kaiming's uniform bound with a = sqrt(5)
            a_RI = torch.empty(each.rank, each.part.in_features).uniform_(-bound, bound, generator=generator)
            starts.append(Start(a_RI, torch.zeros(each.part.out_features, each.rank), is_zero=True))
        return starts
