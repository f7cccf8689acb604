"""S3FT: where the model is already right, its own answer is the target."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from temper.core.errors import SettingError
from temper.measure.examples import Question
from temper.synthesize.base import Made, Round, Synthesizer, answered, request
from temper.verify.base import Verifier

PARAPHRASE = "Say the answer in your own words.\nQuestion: {prompt}\nAnswer: {answer}\nIn your own words: "


class S3FT(Synthesizer, name="s3ft"):
    """Take for each question the model's own answer where a judge finds it right, else the gold one or a paraphrase.

    With (x, y) a row, y^ = M(x) the model's answer, y~ the model's paraphrase of y, and J the judge: the target is y^
    where J(y^, y), else y~ where J(y~, y), else y. M is the model before tuning (`from` of the stage), J the
    `verifier`, and y~ the answer to `paraphrase`.

    Paper: Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models, arXiv:2502.08130.
    Deviation: the request for a paraphrase is worded here; a question whose request is too long for the model keeps
    its gold answer.
    """

    example: ClassVar[dict[str, Any]] = {"paraphrase": None}

    verifier: Verifier = Field(default_factory=lambda: Verifier.parse("exact"), description="J: who judges an answer")
    paraphrase: str | None = Field(
        PARAPHRASE, description="what is asked for a paraphrase, with {prompt} and {answer} in it; null: none is asked"
    )
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest answer, above 0 samples")
    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of an answer at most; by default twice the longest gold answer, and 8 more"
    )

    @field_validator("paraphrase")
    @classmethod
    def _has_places(cls, written: str | None) -> str | None:
        if written is not None and "{answer}" not in written:
            raise SettingError("paraphrase", written, "has no place for the answer", "write {answer} in it")
        return written

    def make(self, round: Round) -> Made:
        questions = round.questions()
        own = self._right(round, questions, questions)
        left = [number for number in range(len(questions)) if own[number] is None]
        again: list[str | None] = [None] * len(left)
        if self.paraphrase is not None and left:
            wrong = [questions[number] for number in left]
            again = self._right(round, [self._request(question) for question in wrong], wrong, skips=True)
        rephrased = dict(zip(left, again, strict=True))
        rows = []
        for number, question in enumerate(questions):
            answers = {"own": own[number], "paraphrase": rephrased.get(number), "gold": question.answer}
            how, answer = next((how, answer) for how, answer in answers.items() if answer is not None)
            rows.append(answered(question, answer, how))
        counts = {how: sum(row.columns["answer_from"] == how for row in rows) for how in ("own", "paraphrase", "gold")}
        return Made(rows, counts)

    def _request(self, question: Question) -> Question:
        assert self.paraphrase is not None
        text = self.paraphrase.replace("{prompt}", question.text).replace("{answer}", question.answer)
        return request(question, text)

    def _right(
        self, round: Round, asked: list[Question], questions: list[Question], skips: bool = False
    ) -> list[str | None]:
        """Return the model's answer to each request, None where the judge finds it wrong."""
        asking = Round(round.rows, round.model, round.seed, "skip" if skips else round.on_bad_rows)
        answers = asking.answers(asked, self.temperature, self.max_new_tokens)
        given = [number for number, answer in enumerate(answers) if answer]
        texts = [str(answers[number]) for number in given]
        verdicts = self.verifier.are_right([questions[number] for number in given], texts)
        right = {number: text for number, text, is_right in zip(given, texts, verdicts, strict=True) if is_right}
        return [right.get(number) for number in range(len(asked))]
