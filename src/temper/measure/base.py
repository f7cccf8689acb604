"""What was gained, what was lost: the axis of suites.

A suite scores a model on examples, one number for each, so that any two models can be compared example by
example: intervals by bootstrap, flips by counting.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from temper.core.errors import ModelError
from temper.core.hashing import hash_json
from temper.core.methods import Method
from temper.data.example import Row
from temper.data.source import Source
from temper.measure.statistics import Transform, value_of
from temper.models.model import Model

Unit = Literal["share", "nats per token", "perplexity", "number"]

NUM_SAMPLES = 8
"""examples that a score shows to the reader: the suite's first, the same for every model"""


@dataclass(frozen=True)
class Sample:
    """One example as a reader sees it."""

    prompt: str
    expected: str
    output: str
    score: float


@dataclass(frozen=True)
class Score:
    """What a suite says of one model."""

    metric: str
    """`exact match`, `perplexity`, ..."""
    higher_is_better: bool
    scores: tuple[float, ...]
    """one for each example, in the suite's order"""
    weights: tuple[float, ...] | None = None
    """what each score counts (tokens, for perplexity); None for equal weights"""
    correct: tuple[bool, ...] | None = None
    """where an example is right or wrong: for flips"""
    transform: Transform = "mean"
    """value = weighted mean of the scores, e to that (perplexity from nats), or the sum of each group's absolute sum
    over all weight (calibration by bins)"""
    groups: tuple[int, ...] | None = None
    """the group of each score, where the value is one by groups"""
    confidences: tuple[float, ...] | None = None
    """the probability that the model gave to its own answers, where it was asked for them"""
    unit: Unit = "share"
    samples: tuple[Sample, ...] = ()
    num_left_out: int = 0
    """examples left out by `on_bad_rows: skip`: rows that cannot be read, and those longer than the model can take"""

    @property
    def value(self) -> float:
        """What the scores come to."""
        return value_of(self.scores, self.weights, self.transform, self.groups)


@dataclass(frozen=True)
class Subject:
    """A model to be measured."""

    model: Model
    base: Model | None = None
    """the untuned base, for suites that compare with it; None where it is not in memory"""
    base_fingerprint: str = ""
    """names the untuned base; what was kept of it in the cache serves where `base` is None. With neither, the
    model is the base itself"""
    shots: Sequence[Row] = field(default_factory=tuple)
    """worked examples put before each prompt: the few-shot arm"""
    load_base: Callable[[], Model] | None = None
    """loads the untuned base, for suites that need its weights, where it is not in memory"""
    asks_confidences: bool = False
    """whether suites of right and wrong answers should say how sure the model was: `Score.confidences`"""

    def untuned(self) -> Model | None:
        """Return the untuned base with its weights, loaded where it is not in memory; None for the base itself.

        Raises:
            ModelError: it cannot be reached.
        """
        if self.base is not None or self.base_fingerprint in ("", self.model.fingerprint):
            return self.base
        if self.load_base is None:
            raise ModelError(
                f"the base {self.base_fingerprint} is not in memory; hand it over as Subject.base or Subject.load_base"
            )
        return self.load_base()


class Suite(Method, axis="suite", packages=("temper.measure",)):
    """Examples and a metric.

    Written as text in a recipe, the name of a suite is that suite with its defaults (`drift`), a lab skill
    (`lab/reverse`) is exact match on it, and any other source is the perplexity of its supervised tokens.
    """

    name: str | None = Field(None, min_length=1, description="what tables call it; by default its data's name")

    @classmethod
    def from_text(cls, text: str) -> tuple[str, object]:
        """Read `drift` as a suite, `lab/copy` as exact match, and every other source as perplexity."""
        if text in cls.methods():
            return text, {}
        source = Source.parse(text)
        lab = source.written().get("lab")
        has_answers = lab is not None and lab["form"] != "text"
        return ("exact_match" if has_answers else "perplexity"), {"source": source}

    @property
    def label(self) -> str:
        """A short name for tables, different for each suite of a recipe."""
        return self.name or self.default_label

    @property
    @abstractmethod
    def default_label(self) -> str:
        """What tables call it when `name` says nothing else."""

    def sources(self) -> Sequence[Source]:
        """Return the data that it reads, for fingerprints."""
        return ()

    def fingerprint(self) -> str:
        """Name everything but the model and the seed that a score follows from: settings, code and data."""
        return hash_json([self.written(), self.code_version(), [source.fingerprint() for source in self.sources()]])

    def contents(self, cache: Path, seed: int) -> Sequence[str]:
        """Return the contents of the rows that are scored, as `Rows` holds them; none for a suite without rows."""
        return ()

    def shots(self, count: int, cache: Path) -> Sequence[Row]:
        """Return at most `count` worked examples that are never scored; none where shots make no sense."""
        return ()

    @abstractmethod
    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        """Score a model.

        Args:
            subject: the model, and what it is compared with.
            cache: a folder for what can be made once (made data, samples of the base).
            seed: of the choice of examples and of sampling; the same for every model that is compared.
        """


def with_defaults(suite: Suite, **defaults: Any) -> Suite:
    """Return the suite with values for fields that it has and whose value nobody wrote (`examples`, `on_bad_rows`)."""
    fields = type(suite).model_fields.keys() - suite.model_fields_set
    return suite.model_copy(update={name: value for name, value in defaults.items() if name in fields})


def plain(score: Score) -> dict[str, Any]:
    """Return a score as JSON values."""
    return asdict(score)


def from_plain(written: Mapping[str, Any]) -> Score:
    """Read what `plain` wrote."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
    values["samples"] = tuple(Sample(**sample) for sample in written["samples"])
    return Score(**values)
