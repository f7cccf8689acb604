"""How deltas are combined: the axis of merge methods.

Merging is done one tensor at a time, so that no more than a tensor of each model is held.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from temper.core.methods import Method


class Merge(Method, axis="merge", packages=("temper.merge",)):
    """How are deltas combined?"""

    def check(self, num_models: int) -> None:
        """Raise SettingError where the settings do not fit the number of models."""

    def combine(self, name: str, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """Return the merged change of one parameter.

        Args:
            name: the parameter's name.
            base: its value in the base, float32.
            deltas: its change in each model, float32, of the base's shape.
        """
        raise NotImplementedError
