"""Intruder dimensions: directions of the tuned weights that the base's weights do not have.

Legend: O output features, I input features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from temper.core.errors import ModelError
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject, Suite
from temper.models.anatomy import part_weight


class IntruderDimensions(Suite, name="intruder_dimensions"):
    """How many of a matrix's largest singular directions are new, on average over the blocks' matrices.

        a left singular vector y_j of the tuned W, j <= k, is an intruder if max over i of |cos(y_j, x_i)| < epsilon

    with x_i the left singular vectors of the base's W_0. `k` and `epsilon` are the paper's. It needs the weights of
    both and no data: an example is a matrix, its score the number of intruders. 0 for the base itself, and the fewer
    the closer to what full fine-tuning does.

    Paper: LoRA vs Full Fine-tuning: An Illusion of Equivalence, arXiv:2410.21228, algorithm 1.
    Deviation: q, k, v, o, gate, up and down of every block are looked at, each a matrix of its own where the model
    stores several as one.
    """

    k: int = Field(10, ge=1, description="k: largest singular directions of each tuned matrix that are looked at")
    epsilon: float = Field(0.5, gt=0, le=1, description="cosine below which a direction is new")

    @property
    def default_label(self) -> str:
        return "intruder dimensions"

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        base, tuned = subject.untuned(), subject.model
        if tuned.fusion is not None:
            raise ModelError(
                "intruder_dimensions: looks at weights, and a combination of models has none of its own; measure the "
                "models that it is made of, in a recipe without `decode`"
            )
        names, scores = [], []
        for part in tuned.anatomy.parts():
            weight_OI = part_weight(tuned.module, part).detach()
            original_OI = weight_OI if base is None else part_weight(base.module, part).detach().to(weight_OI.device)
            is_same = base is None or torch.equal(weight_OI, original_OI)
            names.append(f"{part.path} {part.name}")
            scores.append(0.0 if is_same else float(count_intruders(weight_OI, original_OI, self.k, self.epsilon)))
        worst = sorted(range(len(names)), key=lambda number: -scores[number])[:NUM_SAMPLES]
        return Score(
            metric="intruder dimensions",
            higher_is_better=False,
            scores=tuple(scores),
            unit="number",
            samples=tuple(Sample(names[number], "", f"{scores[number]:.0f}", scores[number]) for number in worst),
        )


def count_intruders(tuned_OI: Tensor, base_OI: Tensor, k: int, epsilon: float) -> int:
    """Count the new directions among the k largest of a tuned matrix, both (O, I)."""
    tuned_left = torch.linalg.svd(tuned_OI.float(), full_matrices=False).U
    base_left = torch.linalg.svd(base_OI.float(), full_matrices=False).U
    cosines = (tuned_left[:, :k].T @ base_left).abs().amax(1)
    return int((cosines < epsilon).sum())
