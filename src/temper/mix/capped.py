"""Proportional mixing with a cap: no source counts more than so many rows.

Legend: S sources.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from temper.mix.base import Mix, Mixing, Sources


class Capped(Mix, name="capped"):
    """Draw from each source in proportion to its size, up to a cap.

    r_m = min(e_m, K) / sum_n min(e_n, K), with e_m the rows of source m and K the `cap`.

    Paper: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, arXiv:1910.10683,
    section 3.5.2 (examples-proportional mixing).
    Deviation: sources are drawn in exact proportion at any step; the paper samples.
    """

    example: ClassVar[dict[str, Any]] = {"cap": 15}

    cap: int = Field(ge=1, description="K: rows that a source counts at most")

    def build(self, sources: Sources) -> Mixing:
        return Mixing(np.minimum(sources.sizes, self.cap).astype(float))
