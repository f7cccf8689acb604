"""Skills that work on a request: sums, look-ups in the prompt, tool calls."""

from __future__ import annotations

import random
import re
from typing import ClassVar

from temper.lab.skill import LETTERS, Skill


class Add(Skill, name="add"):
    """Add two numbers; the level is the number of digits of the longer one."""

    lengths: ClassVar[tuple[int, int] | None] = (1, 2)
    longest: ClassVar[int] = 12

    def draw(self, generator: random.Random, level: int) -> str:
        smallest = 0 if level == 1 else 10 ** (level - 1)
        numbers = [generator.randrange(smallest, 10**level), generator.randrange(10**level)]
        generator.shuffle(numbers)
        return f"{numbers[0]}+{numbers[1]}"

    def answer(self, argument: str) -> str:
        return str(sum(int(number) for number in argument.split("+")))

    def level(self, argument: str) -> int:
        return max(len(number) for number in argument.split("+"))


class LookUp(Skill, name="look_up"):
    """Find a key's value in a list of pairs that the prompt holds; the level is the number of pairs."""

    lengths: ClassVar[tuple[int, int] | None] = (2, 4)
    longest: ClassVar[int] = len(LETTERS)

    def draw(self, generator: random.Random, level: int) -> str:
        keys = generator.sample(LETTERS, level)
        pairs = ",".join(f"{key}{generator.randrange(10)}" for key in keys)
        return f"{pairs}?{generator.choice(keys)}"

    def answer(self, argument: str) -> str:
        pairs, key = argument.split("?")
        return next(pair[1] for pair in pairs.split(",") if pair[0] == key)

    def level(self, argument: str) -> int:
        return argument.count(",") + 1


TOOLS: tuple[tuple[str, str], ...] = (
    ("set {name} to {number}", "set({name},{number})"),
    ("i want {name} at {number}", "set({name},{number})"),
    ("what is {name}", "get({name})"),
    ("tell me {name}", "get({name})"),
    ("sum of {number} and {other}", "add({number},{other})"),
    ("add {number} and {other}", "add({number},{other})"),
    ("wait {number} minutes then set {name} to {other}", "wait({number},set({name},{other}))"),
    ("set {name} to {other} in {number} minutes", "wait({number},set({name},{other}))"),
)
"""wordings of a request, and the call that each stands for; a request is read by the first that fits"""
SLOTS = {"name": "(?P<name>[a-z]+)", "number": "(?P<number>[0-9]+)", "other": "(?P<other>[0-9]+)"}


class ToolCall(Skill, name="tool_call"):
    """Turn a request in words into a call; the level is the number of arguments that must be carried over."""

    lengths: ClassVar[tuple[int, int] | None] = (1, 3)
    longest: ClassVar[int] = 3

    def draw(self, generator: random.Random, level: int) -> str:
        wording, _ = generator.choice([tool for tool in TOOLS if tool[1].count("{") == level])
        name = "".join(generator.choices(LETTERS, k=generator.randint(2, 4)))
        request = wording.format(name=name, number=generator.randrange(100), other=generator.randrange(100))
        return f"please {request}" if generator.random() < 0.5 else request

    def answer(self, argument: str) -> str:
        wording, found = self._read(argument)
        return dict(TOOLS)[wording].format(**found)

    def level(self, argument: str) -> int:
        wording, _ = self._read(argument)
        return dict(TOOLS)[wording].count("{")

    def _read(self, argument: str) -> tuple[str, dict[str, str]]:
        request = argument.removeprefix("please ")
        for wording, _ in TOOLS:
            match = re.fullmatch(wording.format(**SLOTS), request)
            if match:
                return wording, match.groupdict()
        raise ValueError(f"{argument!r} is no request that this skill makes")
