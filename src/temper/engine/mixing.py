"""Put a mixture to work: a stream for each source, and rows held out of each where the mixture measures by them.

Legend: S sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper.core.errors import SettingError
from temper.data.example import Example
from temper.data.stream import EncodedRows, MixedStream, ShuffledStream
from temper.mix.base import Mix, Mixing, Sources

_HELD_OUT, _STREAM = 4, 5


@dataclass(frozen=True)
class Mixture:
    """A stage's sources, each with a stream of its own."""

    stream: MixedStream
    mixing: Mixing
    held_out: tuple[EncodedRows, ...]

    @classmethod
    def of(
        cls,
        mix: Mix,
        indices: Sequence[NDArray[np.int64]],
        encoded: Callable[[NDArray[np.int64]], EncodedRows],
        mean_loss: Callable[[Sequence[Example]], float],
        seed: int,
    ) -> Mixture:
        """Return a mixture before its first step.

        Args:
            indices: the rows of each source.
            encoded: encodes the rows at some indices.
            mean_loss: measures the model as it is now on some examples, nats per token.

        Raises:
            SettingError: settings that do not fit the sources.
        """
        trained, aside = [], []
        for number, own in enumerate(indices):
            if mix.num_held_out >= len(own):
                reason = f"has {len(own)} rows, of which {mix.num_held_out} are to be held out"
                raise SettingError("train.data", f"source {number + 1}", reason, "hold out fewer, or give it more rows")
            order = np.random.default_rng([seed, _HELD_OUT, number]).permutation(len(own))
            aside.append(encoded(np.sort(own[order[: mix.num_held_out]])))
            trained.append(encoded(np.sort(own[order[mix.num_held_out :]])))
        measured = [[example for of_row in part.get(range(len(part))) for example in of_row] for part in aside]

        def losses() -> NDArray[np.float64]:
            return np.array([mean_loss(examples) for examples in measured])

        mixing = mix.build(Sources(tuple(len(part) for part in trained), losses))
        streams = [
            ShuffledStream(part, int(np.random.SeedSequence([seed, _STREAM, number]).generate_state(1)[0]))
            for number, part in enumerate(trained)
        ]
        stream = MixedStream(streams, lambda: mixing.weights_S.tolist(), mixing.is_online)
        return cls(stream, mixing, tuple(aside))

    def report(self) -> list[dict[str, Any]]:
        """Return each source's rows, its weight now, and how many examples were drawn from it."""
        drawn = self.stream.place.drawn
        return [
            {"rows": len(part), "weight": float(weight), "drawn": count}
            for part, weight, count in zip(self.stream.parts, self.mixing.weights_S, drawn, strict=True)
        ]
