"""Rows of the lab's skills: `lab/copy`, `lab/reverse/preference`, or the source `lab` over its settings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from temper.core.hashing import hash_files, hash_json
from temper.data.example import Format
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split
from temper.lab.skill import Skill, corrupt

Form = Literal["completion", "messages", "preference", "label", "text"]


class Lab(Source, name="lab"):
    """Questions of a procedural skill, made on the spot, with true answers.

    Train and test cannot overlap: a hash of each question's argument decides on which side it falls. Rows carry the
    columns `task`, `level` and `source`; with noise also `is_noisy` and `truth`.
    """

    example: ClassVar[dict[str, Any]] = {"skill": "copy", "num": 16}

    skill: Skill = Field(description="the skill: its name, or its name over its settings")
    num: int = Field(4096, ge=1, description="rows of the train split; fewer where the skill has no more questions")
    num_test: int = Field(512, ge=1, description="rows of the test split; fewer where the skill has no more questions")
    seed: int = Field(0, description="seed of the drawing; the split does not depend on it")
    lengths: tuple[int, int] | None = Field(
        None, description="easiest and hardest level (letters, digits, words or pairs); default: the skill's own"
    )
    form: Form = Field(
        "completion",
        description="shape of a row: prompt and completion, chat messages, one text, a true answer preferred to a "
        "spoilt one, or an answer labelled true or false",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the train rows whose answer is spoilt (or whose preference or label is turned round)",
    )
    num_errors: int = Field(1, ge=1, description="characters in which a spoilt answer differs from the true one")

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.lengths is not None:
            low, high = self.lengths
            if self.skill.lengths is None:
                raise ValueError(f"lengths: {self.skill.method_name} has no levels to choose from; leave it out")
            if not 1 <= low <= high <= self.skill.longest:
                raise ValueError(
                    f"lengths: {[low, high]} is not a range of levels from 1 to {self.skill.longest}; "
                    f"try {list(self.skill.lengths)}"
                )
        return self

    @classmethod
    def shorthand(cls, rest: str) -> dict[str, object]:
        """Read `copy`, `copy/messages`, and `pairs` for `reverse/preference`."""
        skill, _, form = rest.partition("/")
        if skill == "pairs" and not form:
            skill, form = "reverse", "preference"
        return {"skill": skill, "form": form} if form else {"skill": skill}

    @property
    def label(self) -> str:
        name = f"lab/{self.skill.method_name}"
        return name if self.form == "completion" else f"{name}/{self.form}"

    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        """Make the rows of a split, in memory."""
        num = self.num if split == "train" else self.num_test
        arguments = self.skill.arguments(split, num, self.seed, self.lengths)
        generator = random.Random(f"{self.skill.method_name} {split} {self.seed} spoil")
        noise = self.noise if split == "train" else 0.0
        records = [self._record(argument, noise, generator) for argument in arguments]
        form: Format = self.form
        return Rows.from_list(records, form, f"{self.fingerprint()}-{split}", f"{self.label}/{split}")

    def fingerprint(self) -> str:
        here = Path(__file__).parent
        code = [here / "skill.py", Path(__file__), *sorted((here / "skills").glob("*.py"))]
        return hash_json([self.model_dump(mode="json"), hash_files(code), self.skill.code_version()])

    def _record(self, argument: str, noise: float, generator: random.Random) -> dict[str, Any]:
        prompt, truth = self.skill.prompt(argument), self.skill.answer(argument)
        # Every draw is made whether used or not: the noise that is asked for does not move the other rows' draws.
        is_noisy, is_true, wrong = (
            generator.random() < noise,
            generator.random() < 0.5,
            corrupt(truth, generator, self.num_errors),
        )
        answer = wrong if is_noisy else truth
        columns: dict[str, Any] = {
            "task": self.skill.method_name,
            "level": self.skill.level(argument),
            "source": "lab",
        }
        if noise:
            columns |= {"is_noisy": is_noisy, "truth": truth}
        if self.form == "completion":
            return {"prompt": prompt, "completion": answer} | columns
        if self.form == "text":
            return {"text": prompt + answer} | columns
        if self.form == "preference":
            chosen, rejected = (wrong, truth) if is_noisy else (truth, wrong)
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | columns
        if self.form == "label":
            shown = truth if is_true else wrong
            return {"prompt": prompt, "completion": shown, "label": is_true != is_noisy} | columns
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return {"messages": turns} | columns
