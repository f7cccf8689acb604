"""Drift: how far a model has moved from its base, on text that the base samples from its own beginnings.

It needs no data, so it stands in where nobody names what is to be kept. The base's samples and its
log-probabilities of them are made once, and kept by the base's fingerprint; after that the base is not needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from temper.core.errors import DataError, ModelError
from temper.core.files import naming
from temper.core.hashing import hash_json
from temper.data.example import Sequence
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject, Suite
from temper.models.generate import sample_from_beginnings
from temper.signals.likelihood import example_logprobs


class Drift(Suite, name="drift"):
    """Divergence from the base, KL(base || model), in nats per token; 0 for the base itself.

    Source: Approximating KL Divergence (John Schulman, joschu.net/blog/kl-approx.html, 2020), the estimator k3: over
    tokens x that the base samples, the mean of r - 1 - log r with r = p_model(x) / p_base(x). It is unbiased, since
    the mean of r under the base is 1, never negative, and varies far less than -log r.

    With `metric: loss`, the model's own loss on that text instead: what the base could say and the model finds
    unlikely now. For the base itself that is its entropy.
    """

    metric: Literal["divergence", "loss"] = Field(
        "divergence", description="divergence from the base, or the loss on its text, both in nats per token"
    )
    texts: int = Field(256, ge=2, description="texts that the base samples")
    length: int = Field(64, ge=2, description="tokens of a text at most, its beginning included")

    @property
    def default_label(self) -> str:
        return "drift" if self.metric == "divergence" else "own text"

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        reference = self._reference(subject, cache, seed)
        logprobs = example_logprobs(subject.model, reference.sequences())
        if self.metric == "loss":
            tokens = [-own for own in logprobs]
        else:
            ratios = [own - base for own, base in zip(logprobs, reference.logprobs, strict=True)]
            tokens = [np.expm1(log_ratio) - log_ratio for log_ratio in ratios]
        scores = tuple(float(own.mean()) for own in tokens)
        return Score(
            metric="divergence from the base" if self.metric == "divergence" else "loss on the base's own text",
            higher_is_better=False,
            scores=scores,
            weights=tuple(float(len(own)) for own in tokens),
            unit="nats per token",
            samples=tuple(
                Sample("", "", subject.model.tokenizer.decode(text), score)
                for text, score in zip(reference.texts[:NUM_SAMPLES], scores, strict=False)
            ),
        )

    def _reference(self, subject: Subject, cache: Path, seed: int) -> Reference:
        """Return the base's text, from the cache or made and kept there."""
        base = subject.base or subject.model
        fingerprint = subject.base_fingerprint or base.fingerprint
        # The texts are the same whatever `metric` asks of them, and whatever machine made them: they are the reference.
        path = cache / "drift" / f"{hash_json([fingerprint, self.texts, self.length, seed, self.code_version()])}.npz"
        if path.exists() and (subject.base_fingerprint or not base.is_changed):
            return Reference.read(path)
        if fingerprint != base.fingerprint:
            raise ModelError(
                f"{self.label}: the text of the base {fingerprint} is not in {path.parent}, and the base is not in "
                "memory; measure the base first, or hand it over as Subject.base"
            )
        length = min(self.length, base.num_positions)
        texts = [np.array(text, np.int32) for text in sample_from_beginnings(base, self.texts, length, seed)]
        unscored = Reference(texts, [])
        reference = Reference(texts, example_logprobs(base, unscored.sequences()))
        if not base.is_changed:
            reference.write(path)
        return reference


@dataclass(frozen=True)
class Reference:
    """Text that a base sampled, and how likely it found each of its tokens."""

    texts: list[NDArray[np.int32]]
    logprobs: list[NDArray[np.float64]]
    """nats, one for each token but a text's first"""

    def sequences(self) -> list[list[Sequence]]:
        """Return the texts with every token but the first supervised."""
        return [[Sequence(text, (np.arange(len(text)) > 0).astype(np.float32))] for text in self.texts]

    def write(self, path: Path) -> None:
        """Write all or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with naming(path), partial.open("wb") as file:
            lengths = [len(text) for text in self.texts]
            np.savez(file, lengths=lengths, tokens=np.concatenate(self.texts), logprobs=np.concatenate(self.logprobs))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read what `write` wrote.

        Raises:
            DataError: the file is not whole.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                lengths = stored["lengths"]
                tokens = np.split(stored["tokens"], np.cumsum(lengths)[:-1])
                return cls(tokens, np.split(stored["logprobs"], np.cumsum(lengths - 1)[:-1]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(path, None, f"is damaged ({error})", "remove it, and it is made again") from error
