"""Skills on short strings of 16 letters; the level is the number of letters."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from temper.lab.skill import LETTERS, Skill


def next_letter(letter: str) -> str:
    """Return the letter that follows; the first follows the last."""
    return LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)]


class StringSkill(Skill):
    """A function of a string of letters."""

    def draw(self, generator: random.Random, level: int) -> str:
        return "".join(generator.choices(LETTERS, k=level))


class Copy(StringSkill, name="copy"):
    """Write the string again."""

    def answer(self, argument: str) -> str:
        return argument


class Reverse(StringSkill, name="reverse"):
    """Write the string from its end to its beginning."""

    def answer(self, argument: str) -> str:
        return argument[::-1]


class Shift(StringSkill, name="shift"):
    """Put the next letter of the alphabet for each letter; the first follows the last."""

    def answer(self, argument: str) -> str:
        return "".join(next_letter(letter) for letter in argument)


class Swap(StringSkill, name="swap"):
    """Exchange the first and the last letter."""

    def answer(self, argument: str) -> str:
        return argument if len(argument) < 2 else argument[-1] + argument[1:-1] + argument[0]


class Duplicate(StringSkill, name="duplicate"):
    """Write each letter twice."""

    lengths: ClassVar[tuple[int, int] | None] = (2, 4)

    def answer(self, argument: str) -> str:
        return "".join(letter * 2 for letter in argument)


class Last(StringSkill, name="last"):
    """Write the last letter alone."""

    def answer(self, argument: str) -> str:
        return argument[-1]


class Sort(StringSkill, name="sort"):
    """Write the letters in alphabetical order."""

    def answer(self, argument: str) -> str:
        return "".join(sorted(argument))


class SortDescending(StringSkill, name="sort_descending"):
    """Write the letters in reverse alphabetical order."""

    def answer(self, argument: str) -> str:
        return "".join(sorted(argument, reverse=True))


class Count(StringSkill, name="count"):
    """Say how many letters there are."""

    longest: ClassVar[int] = 9

    def answer(self, argument: str) -> str:
        return str(len(argument))


class Rotate(StringSkill, name="rotate"):
    """Move the first letters to the end."""

    by: int = Field(2, ge=1, description="letters that move")

    def answer(self, argument: str) -> str:
        by = self.by % len(argument)
        return argument[by:] + argument[:by]


class ReverseShift(StringSkill, name="reverse_shift"):
    """Reverse the string, then put the next letter for each: a composition of two skills."""

    def answer(self, argument: str) -> str:
        return "".join(next_letter(letter) for letter in reversed(argument))


class Conflict(StringSkill, name="conflict"):
    """The prompt of `copy` wants the reverse: what was learnt must be given up."""

    @property
    def word(self) -> str:
        return Copy.method_name

    def answer(self, argument: str) -> str:
        return argument[::-1]
