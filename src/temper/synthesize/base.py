"""How new examples are made: the axis of synthesizers, and what they share.

A synthesizer turns seed rows and a model into rows: the model's own answers, a teacher's new questions. It trains
nothing: the stage `synthesize` runs it once, and the stage `rounds` in turn with training. So a further method of
self-improvement is one file that says what a round makes of the model so far.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from temper.core.errors import DataError
from temper.core.methods import Method
from temper.data.encode import Encoder, RowError
from temper.data.example import Format, Row
from temper.data.rows import Rows
from temper.data.source import OnBadRows
from temper.measure.examples import Prompt, Question, to_question
from temper.models.generate import generate
from temper.models.model import Model


@dataclass(frozen=True)
class Round:
    """What one round has to work with."""

    rows: Rows
    """the seed rows"""
    model: Model
    """as it is now: the stage's own, or trained on what the rounds before made"""
    seed: int
    on_bad_rows: OnBadRows = "stop"

    def questions(self) -> list[Question]:
        """Return the seed rows as questions with their expected answers."""
        return [to_question(row) for row in self.rows]

    def answers(
        self, questions: Sequence[Question], temperature: float = 0.0, max_new_tokens: int | None = None
    ) -> list[str | None]:
        """Let the model answer; None where a question does not fit it (with `on_bad_rows: skip`).

        Args:
            max_new_tokens: tokens of an answer at most; by default twice the longest expected one, and 8 more.

        Raises:
            DataError: a question that does not fit the model, with `on_bad_rows="stop"`.
        """
        room = max_new_tokens or self._room(questions)
        limit = self.model.num_positions
        encoder = Encoder.of(self.model, limit)
        prompts: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            try:
                tokens = encoder.prompt(question.to_row())
                if len(tokens) + room > limit:
                    raise RowError(f"{len(tokens)} tokens of prompt and {room} of answer do not fit into {limit}")
                prompts[number] = tokens
            except RowError as error:
                if self.on_bad_rows == "stop":
                    origin = question.row.origin
                    fix = "shorten or remove the row, or set on_bad_rows: skip"
                    raise DataError(origin.file, origin.line, str(error), fix) from error
        written = generate(self.model, list(prompts.values()), room, temperature=temperature, seed=self.seed)
        texts = [self.model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        answered = dict(zip(prompts, texts, strict=True))
        return [answered.get(number) for number in range(len(questions))]

    def _room(self, questions: Sequence[Question]) -> int:
        answers = [question.answer for question in questions]
        longest = max(len(tokens) for tokens in self.model.tokenizer(answers, add_special_tokens=False)["input_ids"])
        return 2 * longest + 8


@dataclass(frozen=True)
class Made:
    """What a round made."""

    rows: list[Row]
    counts: dict[str, int] = field(default_factory=dict)
    """what happened to the seed rows, for the report"""


class Synthesizer(Method, axis="synthesize", packages=("temper.synthesize",)):
    """How are new examples made?"""

    formats: ClassVar[frozenset[Format]] = frozenset({"messages", "completion"})
    """the row formats that it can work with"""
    keeps_data: ClassVar[bool] = False
    """whether what it makes is added to the data so far, instead of taking its place"""
    trains_first: ClassVar[bool] = False
    """whether in rounds the model is trained on the seed rows before it is first asked"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        trained = " that was trained on the seed rows" if cls.trains_first else ""
        return (*super().needs(), f"a model{trained} to ask")

    @abstractmethod
    def make(self, round: Round) -> Made:
        """Make rows.

        Raises:
            SettingError: a setting that does not fit the rows.
            DataError: a row that cannot be used.
        """


def answered(question: Question, answer: str, how: str) -> Row:
    """Return a question's row with another answer, and how it came about in the column `answer_from`."""
    row = question.row
    columns = {**row.columns, "answer_from": how}
    if row.format == "messages":
        turn = {**question.row.content["messages"][-1], "content": answer}
        return replace(row, content={**row.content, "messages": [*question.turns(), turn]}, columns=columns)
    return replace(row, content=question.to_row(answer).content, columns=columns)


def request(question: Question, text: str) -> Question:
    """Return a question that asks something else of the same row, in the same manner."""
    prompt: Prompt = [{"role": "user", "content": text}] if question.is_conversation else text
    return replace(question, prompt=prompt)
