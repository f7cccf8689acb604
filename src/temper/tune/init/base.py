"""Where a low-rank update starts: the axis of LoRA's initialisations.

Legend: R rank, I input features, O output features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.methods import CALIBRATION, Method
from temper.models.anatomy import Part
from temper.models.model import Model
from temper.signals.calibration import Calibration


@dataclass(frozen=True)
class Wanted:
    """A part that is to get an update, as the settings ask for it."""

    part: Part
    rank: int
    scaling: float
    """what B A is multiplied with"""


@dataclass(frozen=True)
class Start:
    """The first factors of one part's update; where B A is not 0, its start is taken off again as it trains."""

    a_RI: Tensor
    b_OR: Tensor
    is_zero: bool = False
    """B is 0, so there is nothing to take off"""


class LowRankInit(Method, axis="init", packages=("temper.tune.init",)):
    """Where does a low-rank update start?"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), *((CALIBRATION,) if cls.declares("calibration") else ()))

    def calibration(self, model: Model, wanted: Sequence[Wanted]) -> Calibration | None:
        """Declare what is to be measured before `start`; None where nothing is."""
        return None

    @abstractmethod
    def start(
        self, model: Model, wanted: Sequence[Wanted], generator: torch.Generator, calibration: Calibration | None
    ) -> Sequence[Start | None]:
        """Return float32 factors for each part, on the CPU; None for a part that is to have no update.

        Args:
            wanted: the parts, in the model's order.
            generator: of random starts.
            calibration: what `calibration` declared, filled.
        """
