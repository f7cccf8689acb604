"""Perplexity: how surprised a model is by text, e to the nats per token."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from temper.core.errors import DataError
from temper.data.encode import Encoder, RowError
from temper.data.example import Format, Row, Sequence
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject
from temper.measure.examples import SourceSuite, to_question
from temper.signals.likelihood import example_logprobs


class Perplexity(SourceSuite, name="perplexity"):
    """e to the mean surprise of a token, in nats; 1 is certainty, lower is better.

    Source: Perplexity - a measure of the difficulty of speech recognition tasks (Jelinek, Mercer, Bahl and Baker,
    Journal of the Acoustical Society of America 62, 1977).

    An example's score is its mean of nats, its weight its number of tokens: the value is that of all tokens taken
    together. Loss weights only say which tokens count, all of them alike. With `tokens: all` a text longer than
    `max_length` is read in pieces that do not see one another, which makes its perplexity a little higher.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"text", "messages", "completion"})

    tokens: Literal["supervised", "all"] = Field(
        "supervised", description="tokens that count: what the model is to write, or all but the first of a text"
    )

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        rows = self.rows(cache, seed)
        encoded = self._encode(Encoder.of(subject.model, self.max_length), rows)
        kept = [(row, sequences) for row, sequences in zip(rows, encoded, strict=True) if sequences]
        if not kept:
            raise DataError(self.source.label, None, "holds no row that can be scored", "raise max_length")
        logprobs = example_logprobs(subject.model, [sequences for _, sequences in kept])
        scores = tuple(float(-own.mean()) for own in logprobs)
        return Score(
            metric="perplexity",
            higher_is_better=False,
            scores=scores,
            weights=tuple(float(len(own)) for own in logprobs),
            transform="exp",
            unit="perplexity",
            samples=tuple(_sample(row, score) for (row, _), score in zip(kept[:NUM_SAMPLES], scores, strict=False)),
            num_left_out=len(rows) - len(kept) + self.num_unread(cache),
        )

    def _encode(self, encoder: Encoder, rows: list[Row]) -> list[list[Sequence]]:
        """Return each row's sequences, none for a row left out."""
        if self.tokens == "supervised":
            found = [
                [sequence] if isinstance(sequence, Sequence) else sequence for sequence in encoder.supervised_many(rows)
            ]
        else:
            found = [self._plain(encoder, row) for row in rows]
        for row, sequences in zip(rows, found, strict=True):
            if isinstance(sequences, RowError):
                self.refuse(row, str(sequences))
        return [[] if isinstance(sequences, RowError) else sequences for sequences in found]

    def _plain(self, encoder: Encoder, row: Row) -> list[Sequence] | RowError:
        try:
            return encoder.plain(row)
        except RowError as error:
            return error


def _sample(row: Row, score: float) -> Sample:
    question = to_question(row)
    if row.format == "text":
        return Sample("", question.text, "", score)
    return Sample(question.text, question.answer, "", score)
