"""LLM2LLM: a teacher writes more of what the student got wrong."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from temper.measure.examples import to_question
from temper.synthesize.base import Made, Round, Synthesizer
from temper.synthesize.teachers.base import Teacher
from temper.verify.base import Verifier


class LLM2LLM(Synthesizer, name="llm2llm"):
    """Ask the student the seed questions, and let a teacher write new ones like those that it got wrong.

    D_0 is the seed data. In round i the student is trained from its start on D_i; W_i are the rows of D_0 that it then
    answers wrongly; D_(i+1) = D_i + T(W_i), with T the `teacher`, which writes `per_error` rows for each. Only seed
    rows are ever expanded. In the stage `rounds`; the stage `synthesize` does one step of it with a model as it is.

    Paper: LLM2LLM: Boosting LLMs with Novel Iterative Data Enhancement, arXiv:2403.15042.
    Deviation: a new row is dropped only where its question is exactly that of a seed row or of another of its round;
    the paper also drops those that are alike. One that an earlier round made may come again, as in the authors' code,
    whose filter knows the round's own rows alone.
    """

    keeps_data: ClassVar[bool] = True
    trains_first: ClassVar[bool] = True

    teacher: Teacher = Field(default_factory=lambda: Teacher.parse("lab"), description="T: who writes new rows")
    verifier: Verifier = Field(default_factory=lambda: Verifier.parse("exact"), description="who judges an answer")
    per_error: int = Field(1, ge=1, description="new rows for each wrong answer")
    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of an answer at most; by default twice the longest expected one, and 8 more"
    )

    def make(self, round: Round) -> Made:
        questions = round.questions()
        answers = round.answers(questions, max_new_tokens=self.max_new_tokens)
        asked = [number for number, answer in enumerate(answers) if answer is not None]
        texts = [str(answers[number]) for number in asked]
        verdicts = self.verifier.are_right([questions[number] for number in asked], texts)
        wrong = [number for number, is_right in zip(asked, verdicts, strict=True) if not is_right]
        known = {question.text for question in questions}
        rows = []
        for number in wrong:
            seed = int(np.random.SeedSequence([round.seed, number]).generate_state(1)[0])
            for row in self.teacher.similar(questions[number].row, self.per_error, seed):
                text = to_question(row).text
                if text not in known:
                    known.add(text)
                    rows.append(row)
        return Made(rows, {"asked": len(asked), "wrong": len(wrong), "made": len(rows)})
