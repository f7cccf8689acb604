"""Expected calibration error: whether a model is right as often as it is sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from temper.core.errors import SettingError
from temper.core.hashing import hash_json
from temper.data.example import Row
from temper.data.source import Source
from temper.measure.base import Score, Subject, Suite


class ExpectedCalibrationError(Suite, name="expected_calibration_error"):
    """The mean gap between how sure a model is and how often it is right, over bins of how sure it is.

        ECE = sum over m of |B_m| / n * |acc(B_m) - conf(B_m)|,    B_m: confidence in ((m - 1) / M, m / M]

    `of` is any suite of right and wrong answers. The confidence is the probability that the model gave to its answer:
    of the chosen one among the choices; of the text that it wrote, its end included. `bins` is M. An example's score
    is its confidence less 1 where it is right; intervals draw examples, which stay in their bins. With few examples
    in a bin the error is overestimated, for every model alike.

    Paper: On Calibration of Modern Neural Networks, arXiv:1706.04599, equation 3 (bins of equal width, M = 15).
    """

    example: ClassVar[dict[str, Any]] = {"of": "lab/copy"}

    of: Suite = Field(description="a suite whose answers are right or wrong")
    bins: int = Field(15, ge=1, description="M: bins of equal width over confidences from 0 to 1")

    @property
    def default_label(self) -> str:
        return f"{self.of.label} calibration"

    def sources(self) -> Sequence[Source]:
        return self.of.sources()

    def fingerprint(self) -> str:
        return hash_json([super().fingerprint(), self.of.fingerprint()])

    def contents(self, cache: Path, seed: int) -> Sequence[str]:
        return self.of.contents(cache, seed)

    def shots(self, count: int, cache: Path) -> Sequence[Row]:
        return self.of.shots(count, cache)

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        score = self.of.measure(replace(subject, asks_confidences=True), cache, seed)
        if score.correct is None or score.confidences is None:
            name = self.of.method_name
            raise SettingError(
                "expected_calibration_error.of",
                name,
                "has no right or wrong answers with a confidence",
                "name another suite",
            )
        return Score(
            metric="expected calibration error",
            higher_is_better=False,
            scores=tuple(sure - right for sure, right in zip(score.confidences, score.correct, strict=True)),
            transform="by group",
            groups=tuple(bin_of(sure, self.bins) for sure in score.confidences),
            confidences=score.confidences,
            unit="number",
            samples=tuple(
                replace(sample, score=sure) for sample, sure in zip(score.samples, score.confidences, strict=False)
            ),
            num_left_out=score.num_left_out,
        )


def bin_of(confidence: float, num_bins: int) -> int:
    """Return the bin, from 0, of a confidence; a bin holds its upper edge, the first one 0 too."""
    return max(0, math.ceil(confidence * num_bins) - 1)
