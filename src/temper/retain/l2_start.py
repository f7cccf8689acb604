"""L2 to the start: weights are pulled back to where the stage began."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from pydantic import Field
from torch import Tensor, nn

from temper.core.errors import SettingError, nearest
from temper.core.schedule import Moment
from temper.models.model import Model
from temper.retain.base import Retain, Retention
from temper.signals.setup import Setup


class Anchor(Retention):
    """Numbers that train, where they began, and how strongly each is held (None: all alike).

    What they began at is not kept in checkpoints: a tuner that is attached anew begins at the same bits.
    """

    def __init__(self, trained: Sequence[tuple[str, nn.Parameter]], strength: float) -> None:
        self.strength = strength
        self.weights = [weight for _, weight in trained]
        self.starts = [weight.detach().clone() for weight in self.weights]
        self.importances: list[Tensor] | None = None

    def penalty(self, moment: Moment) -> Tensor:
        squares = [(weight - start).square() for weight, start in zip(self.weights, self.starts, strict=True)]
        if self.importances is not None:
            squares = [square * held for square, held in zip(squares, self.importances, strict=True)]
        sums = [square.sum() for square in squares]
        return self.strength / 2 * sum(sums[1:], sums[0])


class L2Start(Retain, name="l2_start"):
    """Add alpha / 2 * ||w - w_0||^2 to the objective, w_0 being the weights before the stage.

    Paper: Explicit Inductive Bias for Transfer Learning with Convolutional Networks, arXiv:1802.01483 (L2-SP);
    for sequences of tasks, A Closer Look at Rehearsal-Free Continual Learning, arXiv:2203.17269.
    Symbols: alpha is `strength`. Deviation: new layers are not decayed to zero; of an adapter, its own numbers are
    held and not the change that they make together.
    """

    strength: float = Field(1e-2, ge=0, description="alpha: how strongly, per unit of squared distance")
    parameters: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="what is held of all that trains: patterns of names, such as *self_attn*",
    )

    def build(self, model: Model, setup: Setup) -> Anchor:
        return Anchor(matching(setup.trained, self.parameters, "retain.l2_start.parameters"), self.strength)


def matching(
    trained: Sequence[tuple[str, nn.Parameter]], patterns: Sequence[str], key: str
) -> list[tuple[str, nn.Parameter]]:
    """Return the numbers whose names fit a pattern.

    Raises:
        SettingError: a pattern that fits none.
    """
    names = [name for name, _ in trained]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise SettingError(key, pattern, "matches nothing that trains", nearest(pattern, names[:50]))
    return [(name, weight) for name, weight in trained if any(fnmatch(name, pattern) for pattern in patterns)]
