"""Temperature mixing: between proportional and equal.

Legend: S sources.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from temper.mix.base import Mix, Mixing, Sources


class Temperature(Mix, name="temperature"):
    """Draw from each source by its size to the power of 1/T.

    r_m = min(e_m, K)^(1/T) / sum_n min(e_n, K)^(1/T), with e_m the rows of source m, K the `cap` and T the
    `temperature`: 1 is proportional, and the larger T, the nearer all sources are to equal weights.

    Paper: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, arXiv:1910.10683,
    section 3.5.2: with a temperature K is 2^21 there, and of T = 2, 4 and 8 the first did best (proportional mixing,
    T = 1, was tried with K from 2^16 to 2^21).
    Deviation: sources are drawn in exact proportion at any step; the paper samples.
    """

    temperature: float = Field(2.0, ge=1, description="T: 1 for proportional, larger for more equal")
    cap: int | None = Field(None, ge=1, description="K: rows that a source counts at most; null for all")

    def build(self, sources: Sources) -> Mixing:
        sizes_S = np.asarray(sources.sizes, dtype=float)
        counted_S = sizes_S if self.cap is None else np.minimum(sizes_S, self.cap)
        return Mixing(counted_S ** (1 / self.temperature))
