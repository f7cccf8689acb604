"""ComPEFT: the largest entries of a change, as signs and one scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from temper.compress.base import Compress, Compressed, Original
from temper.core.errors import ModelError, SettingError
from temper.delta.golomb import entropy_bits
from temper.delta.ternary import TernaryDelta, flatten
from temper.measure.base import Suite

Density = Annotated[float, Field(gt=0, le=1)]
Alpha = Annotated[float, Field(gt=0)]


class ComPEFT(Compress, name="compeft"):
    """Keep the signs of the largest entries of a change, and one scale for all of them.

        gamma = sgn(tau) * top-k(|tau|),    tau~ = alpha * sigma(tau) * gamma

    tau is the whole change as one vector: the factors A and B of a low-rank change, else the difference of the
    weights; sigma its standard deviation. An adapter's factors are taken as they are, with what A was drawn with: the
    authors' code takes off nothing either from LoRA, so that the file is whole without its start. `density` is k as a
    share, `alpha` is alpha. Where several are given, the pair is taken that does best on the held-out suite `by`.
    Positions are Golomb-coded, signs take a bit each.

    Paper: ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization,
    arXiv:2311.13171.
    Deviation: exactly round(k d) entries are kept, where the authors' code keeps one more.
    """

    density: tuple[Density, ...] | Density = Field(0.1, description="k: share of the entries that is kept, or several")
    alpha: tuple[Alpha, ...] | Alpha = Field(
        1.0, description="alpha: the scale, in standard deviations of the change; or several"
    )
    by: Suite | None = Field(None, description="held-out suite that chooses where several values are given")

    @model_validator(mode="after")
    def _chosen_by_something(self) -> Self:
        num = len(list(self._pairs()))
        if num == 0:
            raise SettingError("alpha", self.alpha, "with this density leaves nothing to try", "give a value for each")
        if (num > 1) != (self.by is not None):
            fix = "name a held-out suite in `by`" if num > 1 else "take out `by`, or give several values"
            raise SettingError("by", self.by, f"does not go with {num} pairs of density and alpha", fix)
        return self

    def _pairs(self) -> Iterator[tuple[float, float]]:
        densities = self.density if isinstance(self.density, tuple) else (self.density,)
        alphas = self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)
        return ((density, alpha) for density in densities for alpha in alphas)

    def build(self, original: Original) -> Compressed:
        change = original.change()
        slots, read = flatten(change)
        if not slots:
            raise ModelError("the change is empty, so nothing can be compressed; name a stage that changed the model")
        # The order of the whole vector is needed, so that the change is held once in float32.
        vector = torch.cat([read(slot).flatten().cpu() for slot in slots])
        tried = []
        for density, alpha in self._pairs():
            made = TernaryDelta(slots, top_signs(vector, density), alpha * float(vector.std()), change.provenance)
            value = None if self.by is None else original.score(self.by, made)
            tried.append((made, density, alpha, value))
            if value is not None:
                original.say(f"density {density}, alpha {alpha}: {value:.4g}")
        made, density, alpha, _ = max(tried, key=lambda trial: 0.0 if trial[3] is None else trial[3])
        share = made.num_values / len(vector)
        details = {
            "density": density,
            "alpha": alpha,
            "scale": made.scale_of_signs,
            "entries": len(vector),
            "kept": made.num_values,
            "entropy_bytes": entropy_bits(share) * len(vector) / 8,
            "tried": [{"density": d, "alpha": a, "value": value} for _, d, a, value in tried],
        }
        return Compressed(made, details)


def top_signs(vector: Tensor, density: float) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Return the signs of the entries that are largest by magnitude, 0 elsewhere."""
    num_kept = max(1, round(density * len(vector)))
    signs = torch.zeros(len(vector), dtype=torch.int8)
    kept = vector.abs().topk(num_kept).indices
    signs[kept] = vector[kept].sign().to(torch.int8)
    return signs.numpy()
