"""Stop before a broken loss breaks the model, and say which examples it came from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from temper.core.errors import TrainingError
from temper.data.example import Origin

Worst = Callable[[], Sequence[tuple[float, Origin]]]
MEMORY_STEPS = 50
FIRST_STEPS = 20
LEAST_JUMP_NATS = 1.0


@contextmanager
def naming_memory(step: int, tokens: int, micro_tokens: int) -> Iterator[None]:
    """Say which setting to change where memory runs out.

    Args:
        tokens: of the forward pass that runs inside.
        micro_tokens: the setting that bounds it.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        fix = f"lower micro_tokens (now {micro_tokens})"
        if tokens > micro_tokens:
            fix = (
                f"one row alone is that long: lower max_length, or set truncate: true (micro_tokens is {micro_tokens})"
            )
        raise TrainingError(
            f"step {step}: out of memory in a pass over {tokens} tokens; {fix}, or train fewer numbers (tune: lora)"
        ) from error


class LossWatch:
    """Watches a stage's loss.

    A step's loss is a spike when it exceeds the mean of the last 50 steps by `spike` of their standard deviations,
    by that mean itself, and by one nat. The first 20 steps are never spikes.

    Args:
        spike: standard deviations, or None to look for losses that are not finite only.
    """

    def __init__(self, spike: float | None) -> None:
        self.spike = spike
        self.recent: deque[float] = deque(maxlen=MEMORY_STEPS)

    def check(self, step: int, loss: float, grad_norm: float, worst: Worst) -> None:
        """Take a step's loss, before the optimizer uses its gradient.

        Args:
            worst: gives the step's examples as (loss in nats per token, where they stand); called where they are told.

        Raises:
            TrainingError: the loss or the gradient is not finite, or the loss jumped.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {step}: the loss is {loss:g} and the gradient's norm {grad_norm:g}; the largest losses of the "
                f"step are {_shown(worst())}. Lower lr, set clip, or mend the examples"
            )
        if self.spike is not None and len(self.recent) >= FIRST_STEPS:
            mean = sum(self.recent) / len(self.recent)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in self.recent) / len(self.recent))
            limit = mean + max(self.spike * deviation, abs(mean), LEAST_JUMP_NATS)
            if loss > limit:
                raise TrainingError(
                    f"step {step}: the loss jumped to {loss:.3f} from a mean of {mean:.3f} (limit {limit:.3f}); the "
                    f"largest losses of the step are {_shown(worst())}. Mend or remove them, lower lr, or set "
                    f"spike: null to train on"
                )
        self.recent.append(loss)

    def forget(self) -> None:
        """Begin anew, as before the first step."""
        self.recent.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=MEMORY_STEPS)


def _shown(worst: Sequence[tuple[float, Origin]]) -> str:
    # A NaN has no order: it goes first, since it is what is looked for.
    ordered = sorted(worst, key=lambda entry: (not math.isnan(entry[0]), -entry[0] if entry[0] == entry[0] else 0))
    return ", ".join(f"{origin} ({loss:.3f})" for loss, origin in ordered[:3])
