"""Who writes new examples: the axis of teachers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from temper.core.methods import Method
from temper.data.example import Row


class Teacher(Method, axis="teacher", packages=("temper.synthesize.teachers",)):
    """Who writes new examples?"""

    @abstractmethod
    def similar(self, row: Row, num: int, seed: int) -> Sequence[Row]:
        """Return at most `num` new rows like one, with their answers; the same seed gives the same rows.

        Raises:
            SettingError: a row of which the teacher knows nothing.
        """
