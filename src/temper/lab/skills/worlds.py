"""Skills about a small made world: facts, questions of two steps, and a pair of toy languages.

The world is fixed (it does not follow the source's seed): what one stage teaches is true in the next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

from temper.lab.skill import Skill, is_held_out

NUM_PEOPLE = 32
NUM_THINGS = 12
"""towns, and foods"""
PERSON_RELATIONS = ("friend", "boss")
RELATIONS = (*PERSON_RELATIONS, "town", "food")


@cache
def names(salt: str, num: int, num_syllables: int = 2) -> tuple[str, ...]:
    """Return `num` different pronounceable names; the same for the same salt."""
    generator = random.Random(f"lab names {salt}")
    found: dict[str, None] = {}
    while len(found) < num:
        syllables = [generator.choice("bdfgklmnprstvz") + generator.choice("aeiou") for _ in range(num_syllables)]
        found["".join(syllables)] = None
    return tuple(found)


@cache
def world() -> dict[tuple[str, str], str]:
    """Return every fact: (person, relation) to a person, a town or a food."""
    generator = random.Random("lab world")
    everyone = names("everything", NUM_PEOPLE + 2 * NUM_THINGS)
    people, things = everyone[:NUM_PEOPLE], everyone[NUM_PEOPLE:]
    values = {"friend": people, "boss": people, "town": things[:NUM_THINGS], "food": things[NUM_THINGS:]}
    return {
        (person, relation): generator.choice([value for value in values[relation] if value != person])
        for person in people
        for relation in RELATIONS
    }


class Facts(Skill, name="facts"):
    """Say what is true in a world of 32 people: 128 facts, each asked in two wordings.

    Train states every fact; test asks for facts in the one wording that train does not use for them.
    """

    lengths: ClassVar[tuple[int, int] | None] = None

    def domain(self) -> Sequence[str]:
        return [wording for fact in world() for wording in _wordings(*fact)]

    def answer(self, argument: str) -> str:
        words = argument.split()
        return world()[(words[2], words[0]) if words[1] == "of" else (words[0], words[1])]

    def level(self, argument: str) -> int:
        return 1

    def in_test(self, argument: str) -> bool:
        # A share of the facts gives one of its two wordings to the test; the other always trains.
        words = argument.split()
        first, second = _wordings(words[2], words[0]) if words[1] == "of" else _wordings(words[0], words[1])
        if not is_held_out(first + second):
            return False
        return argument == (second if is_held_out(second + first) else first)


def _wordings(person: str, relation: str) -> tuple[str, str]:
    return f"{person} {relation}", f"{relation} of {person}"


class TwoHop(Skill, name="two_hop"):
    """Follow two facts: where does a person's friend live?

    Train holds every single fact and some of the questions of two steps; test holds the other questions, all
    of whose facts train states.
    """

    lengths: ClassVar[tuple[int, int] | None] = None

    def domain(self) -> Sequence[str]:
        single = [f"{person} {relation}" for person, relation in world()]
        return single + [
            f"{person} {first} {second}"
            for person, first in world()
            if first in PERSON_RELATIONS
            for second in RELATIONS
        ]

    def answer(self, argument: str) -> str:
        person, *relations = argument.split()
        for relation in relations:
            person = world()[person, relation]
        return person

    def level(self, argument: str) -> int:
        return argument.count(" ")

    def in_test(self, argument: str) -> bool:
        return self.level(argument) == 2 and is_held_out(argument)


NUM_WORDS = 12
"""words of each kind in each of the two languages"""


@cache
def lexicon() -> dict[str, tuple[str, str]]:
    """Return each word of the first language with its kind (`noun`, `verb`, `adjective`) and its translation."""
    kinds = ("noun", "verb", "adjective")
    words = names("first language", NUM_WORDS * len(kinds))
    translations = names("second language", NUM_WORDS * len(kinds))
    return {
        word: (kinds[index // NUM_WORDS], translation)
        for index, (word, translation) in enumerate(zip(words, translations, strict=True))
    }


class Translate(Skill, name="translate"):
    """Translate between two toy languages: other words, the verb at the end, adjectives behind their nouns.

    The level is the number of words: subject and verb, then an object, then an adjective to each.
    """

    lengths: ClassVar[tuple[int, int] | None] = (2, 5)
    longest: ClassVar[int] = 5

    def draw(self, generator: random.Random, level: int) -> str:
        def word(kind: str) -> str:
            return generator.choice([word for word, (own, _) in lexicon().items() if own == kind])

        subject = [word("noun")]
        sentence_object = [word("noun")] if level >= 3 else []
        if level >= 4:
            subject = [word("adjective"), *subject]
        if level >= 5:
            sentence_object = [word("adjective"), *sentence_object]
        return " ".join([*subject, word("verb"), *sentence_object])

    def answer(self, argument: str) -> str:
        phrases: list[list[str]] = [[]]
        verb = ""
        for word in argument.split():
            kind, translation = lexicon()[word]
            if kind == "verb":
                verb = translation
                phrases.append([])
            else:
                phrases[-1].append(translation)
        return " ".join([word for phrase in phrases for word in reversed(phrase)] + [verb])

    def level(self, argument: str) -> int:
        return len(argument.split())
