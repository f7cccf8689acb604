"""HFT: a random half of each block's matrices trains."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from temper.models.anatomy import Block
from temper.models.model import Model
from temper.signals.calibration import Calibration
from temper.tune.base import Tune
from temper.tune.subset import SubsetTuning, parameters_under


class HalfFineTuning(Tune, name="hft"):
    """Train a random half of each block's matrices in a stage, and leave the other half as it is.

    In every block, half of {q, k, v, o}, half of {gate, up, down} and half of the norms are drawn anew in each stage
    (by its seed); of an odd number, the larger half in a random half of the blocks and the smaller half in the others,
    so that half of all trains. A bias goes with its matrix. Embeddings and head train.

    Paper: HFT: Half Fine-Tuning for Large Language Models, arXiv:2404.18466 (selection by category).
    Symbols: the half is `share`; `train_embeddings: false` lets embeddings and head rest as well.
    Deviation: matrices that a family fuses (q, k and v in one) are drawn as one; the last norm, outside of the blocks,
    goes with the embeddings.
    """

    default_lr: ClassVar[float] = 1e-5

    share: float = Field(0.5, gt=0, lt=1, description="part of each block's matrices and norms that trains")
    train_embeddings: bool = Field(True, description="also train what is outside of the blocks: embeddings, head, norm")

    def attach(self, model: Model, seed: int = 0, calibration: Calibration | None = None) -> SubsetTuning:
        generator = np.random.default_rng(seed)
        blocks = model.anatomy.blocks
        drawn: list[str] = []
        for units_of_blocks in zip(*(_units(block) for block in blocks), strict=True):
            # Counts come from running sums over the blocks in random order, so that the rounding is spread by chance.
            for turn, index in enumerate(generator.permutation(len(blocks))):
                units = units_of_blocks[index]
                count = int((turn + 1) * len(units) * self.share) - int(turn * len(units) * self.share)
                drawn += [units[number] for number in generator.permutation(len(units))[:count]]
        active = set(parameters_under(model, *drawn))
        if self.train_embeddings:
            inside = set(parameters_under(model, *(block.path for block in blocks)))
            active |= {name for name, _ in model.module.named_parameters() if name not in inside}
        return SubsetTuning(model, active)


def _units(block: Block) -> list[list[str]]:
    """Return the paths of a block's modules that are drawn from together."""
    attention = [part.path for part in block.parts if part.name in ("q", "k", "v", "o")]
    mlp = [part.path for part in block.parts if part.name in ("gate", "up", "down")]
    return [list(dict.fromkeys(attention)), list(dict.fromkeys(mlp)), list(block.norms)]
