"""aTLAS: task vectors composed with a learned coefficient for each tensor."""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from temper.core.schedule import Schedule
from temper.merge.base import Bench
from temper.merge.learning import Coefficients, Learned


class Atlas(Learned, name="atlas"):
    """Learn how much of each task vector each tensor takes, on a few rows of the task.

        theta = theta_0 + sum_i Lambda_i tau_i

    Lambda_i is block-diagonal, one number for each tensor of the model; it begins at 0 (the base) and AdamW lowers the
    loss on `data`. With `partitions` K above 1 a tensor's entries fall at random into K parts with numbers of their own
    (aTLAS x K).

    Paper: Knowledge Composition using Task Vectors with Learned Anisotropic Scaling, arXiv:2407.02880.
    Deviation: coefficients of the last step are kept, where the authors keep those of the epoch that does best on
    held-out data; measure the stage, and choose `epochs`.
    """

    partitions: PositiveInt = Field(1, description="K: random parts of each tensor, with a number of their own")
    epochs: PositiveFloat = Field(10, description="passes over the rows")
    lr: PositiveFloat = Field(0.1, description="peak learning rate of AdamW on the coefficients")
    weight_decay: NonNegativeFloat = Field(0.1, description="of AdamW")
    schedule: Schedule = Field(
        default_factory=lambda: Schedule.parse({"cosine": {"warmup": 0}}), description="how the learning rate changes"
    )

    @property
    def keeps_one_model(self) -> bool:
        return False

    def start(self, bench: Bench) -> Coefficients:
        shape = (len(bench.of), len(bench.names), self.partitions)
        return Coefficients(torch.zeros(shape), bench.names, bench.seed)
