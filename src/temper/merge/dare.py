"""DARE: drop random entries of each change and scale up the rest."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from temper.core.hashing import hash_json
from temper.merge.sparse import MaskSignScale, Rescale, rescaled


class Dare(MaskSignScale, name="dare"):
    """Drop and rescale: entries of each change are kept at random, and divided by the share that is kept.

        m_i ~ Bernoulli(p),   tau~_i = (1 - m_i) * tau_i / (1 - p),   theta = theta_base + lambda sum_i w_i tau~_i

    `density` is 1 - p, `scale` is lambda, `weights` are the w_i; with `elect` and `normalize` TIES follows the drop.
    Each model and tensor draws a mask of its own from `seed`.

    Paper: Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch,
    arXiv:2311.03099. `rescale: l1` is mergekit's way: to the sum of magnitudes before the drop.
    """

    density: float = Field(0.5, gt=0, le=1, description="1 - p: share of the entries that is kept, in expectation")
    rescale: Rescale = Field("density", description="density: divide by it; l1: keep the sum of magnitudes; none")
    seed: int = Field(0, ge=0, lt=2**63, description="of the masks")

    @property
    def is_symmetric(self) -> bool:
        return self.density == 1 and super().is_symmetric

    @property
    def keeps_one_model(self) -> bool:
        return self.density == 1 and super().keeps_one_model

    def masked(self, delta: Tensor, name: str, number: int) -> Tensor:
        if self.density == 1:
            return delta
        draws = torch.rand(delta.shape, generator=seeded(self.seed, name, number)).to(delta.device)
        kept = torch.where(draws < self.density, delta, torch.zeros_like(delta))
        return rescaled(kept, delta, self.rescale, self.density)


def seeded(*names: object) -> torch.Generator:
    """Return a generator on the CPU for one thing that has a name: the same on every device and in any order."""
    return torch.Generator().manual_seed(int(hash_json(list(names)), 16) % 2**63)
