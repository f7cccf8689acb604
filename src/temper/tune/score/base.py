"""How much each block matters: the axis of block scores, by which blocks are drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from temper.core.methods import CALIBRATION, Method
from temper.models.model import Model
from temper.signals.calibration import Calibration


class BlockScore(Method, axis="block_score", packages=("temper.tune.score",)):
    """How much does each block matter?"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), *((CALIBRATION,) if cls.declares("calibration") else ()))

    def calibration(self, model: Model) -> Calibration | None:
        """Declare what is to be measured before `scores`; None where nothing is."""
        return None

    @abstractmethod
    def scores(self, model: Model, calibration: Calibration | None) -> Sequence[float]:
        """Return a weight for each block, 0 or more, not all 0.

        Args:
            calibration: what `calibration` declared, filled.
        """
