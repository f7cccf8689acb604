"""A skill: made questions with one true answer, and a split into train and test that cannot overlap.

Decisions:
- A question is an *argument* (`hbda`) behind the skill's word (`reverse:hbda=`); the answer follows from the
  argument alone, so truth is computed and never stored.
- The side of the split on which a question falls is decided by a hash of its argument, not by sampling. The hash
  does not see the skill's name: a string that is held out for `copy` is held out for `reverse` and for
  everything made of them, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from temper.core.methods import Method

TEST_SHARE = 0.2
"""part of all arguments that is held out"""
LETTERS = "abcdefghijklmnop"
"""the 16 letters of which strings are made"""
DRAWS_PER_ROW = 20
"""draws after which a skill's arguments count as used up"""


def is_held_out(argument: str) -> bool:
    """Tell on which side of the split an argument falls, from its text alone."""
    digest = hashlib.blake2b(argument.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < TEST_SHARE * 2**64


class Skill(Method, axis="skill", packages=("temper.lab.skills",)):
    """Questions with one true answer."""

    lengths: ClassVar[tuple[int, int] | None] = (3, 6)
    """easiest and hardest level that are drawn by default; None where there is nothing to choose"""
    longest: ClassVar[int] = 64
    """the hardest level that can be asked for"""

    @property
    def word(self) -> str:
        """The word that the prompt begins with."""
        return self.method_name

    def prompt(self, argument: str) -> str:
        """Return what the model reads."""
        return f"{self.word}:{argument}="

    def draw(self, generator: random.Random, level: int) -> str:
        """Return a random argument of a level, from either side of the split; of a skill with a `domain`, any of it."""
        domain = self.domain()
        assert domain is not None, f"{self.method_name} neither draws arguments nor has a domain of them"
        return generator.choice(domain)

    @abstractmethod
    def answer(self, argument: str) -> str:
        """Return the true answer."""

    def level(self, argument: str) -> int:
        """Return how difficult an argument is; by default its length in characters."""
        return len(argument)

    def in_test(self, argument: str) -> bool:
        """Tell whether an argument is held out."""
        return is_held_out(argument)

    def domain(self) -> Sequence[str] | None:
        """Return every argument of a skill that has few, else None."""
        return None

    def arguments(self, split: str, num: int, seed: int, lengths: tuple[int, int] | None = None) -> list[str]:
        """Return at most `num` different arguments of a split; fewer only where the skill has no more.

        Levels are drawn evenly, so rare ones (short strings) may run out before others.
        """
        generator = random.Random(f"{self.method_name} {split} {seed}")
        wants_test = split == "test"
        domain = self.domain()
        if domain is not None:
            own = [argument for argument in domain if self.in_test(argument) is wants_test]
            return generator.sample(own, min(num, len(own)))
        low, high = lengths or self.lengths or (1, 1)
        found: dict[str, None] = {}
        for _ in range(DRAWS_PER_ROW * num):
            if len(found) == num:
                break
            argument = self.draw(generator, generator.randint(low, high))
            if self.in_test(argument) is wants_test:
                found[argument] = None
        return list(found)


def corrupt(answer: str, generator: random.Random, num_errors: int = 1) -> str:
    """Return a wrong answer: `num_errors` characters become others of their kind (letter or digit).

    An answer with fewer such characters has all of them changed.
    """
    places = [index for index, character in enumerate(answer) if character.isalnum()]
    characters = list(answer)
    for index in generator.sample(places, min(num_errors, len(places))):
        kind = "0123456789" if characters[index].isdigit() else LETTERS
        characters[index] = generator.choice([other for other in kind if other != characters[index]])
    return "".join(characters)


def example(skill: Skill) -> dict[str, Any]:
    """Return the skill's first training question, to show what it is."""
    argument = skill.arguments("train", 1, 0)[0]
    return {"prompt": skill.prompt(argument), "completion": skill.answer(argument)}
