"""A conversation as the model's own chat template writes it, and which of its characters carry loss.

The text is what `apply_chat_template` renders, in the same sandbox. Which characters the assistant wrote, no
template says but one with `{% generation %}` marks; elsewhere it is worked out, and never guessed:

1. A conversation of the same roles, with a mark in place of each content, shows what the template writes around
   the contents (a *skeleton*, made once for each order of roles). Where the real text is exactly the skeleton
   filled with the real contents (whole, or stripped at the ends where the template strips), every position is known.
2. Otherwise (reasoning, tool calls, templates that look into the content) the turn is what stands between the
   generation prompt before it and the end of turn after it, in a text that both are found to be part of.
3. Where the template writes an earlier turn differently from a last one (it drops reasoning), the turn is what
   changes in the text when the message is exchanged for a mark.
What none of these settles is a `RowError`.

A turn reaches from the end of the generation prompt, so that training and generation see the same context, through
the end-of-turn token: the first token of the tokenizer's added ones after the content, or all that the template
writes there (but white space at its end) where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

Message = Mapping[str, Any]
Interval = tuple[int, int, float]
"""characters [start, end) of the text and their loss weight; a later interval overrules an earlier one"""

OPEN, CLOSE, PAD = "\ue000", "\ue001", " \t "
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class RowError(Exception):
    """Why a row cannot be trained on; the stream adds file and line, and stops or puts the row aside."""


@dataclass(frozen=True)
class Turn:
    """Where a message stands in the text, in characters."""

    start: int
    """the end of the generation prompt before it"""
    content: tuple[int, int]
    """its content's characters, less what the template strips"""
    end: int
    """the end of its end-of-turn token"""


@dataclass(frozen=True)
class Skeleton:
    """What a template writes around the contents of a conversation, for one order of roles."""

    order: tuple[int, ...]
    """the messages in the order in which the template writes them"""
    pieces: tuple[str, ...]
    """the text before each content, and after the last, in that order"""
    strips: tuple[tuple[bool, bool], ...]
    """whether each content is stripped at its start and at its end, in that order"""
    margins: tuple[tuple[int, int], ...]
    """characters of each turn before and after its content, in that order"""

    def turns(self, messages: Sequence[Message], text: str) -> dict[int, Turn] | None:
        """Return where each message stands, None where `text` is not exactly this skeleton filled."""
        place = 0
        turns = {}
        for number, piece, (left, right), (before, after) in zip(
            self.order, self.pieces, self.strips, self.margins, strict=False
        ):
            content = messages[number]["content"]
            content = content.lstrip() if left else content
            content = content.rstrip() if right else content
            start = place + len(piece)
            end = start + len(content)
            if not text.startswith(piece, place) or not text.startswith(content, start):
                return None
            turns[number] = Turn(start - before, (start, end), end + after)
            place = end
        return turns if text[place:] == self.pieces[-1] else None


class ChatTemplate:
    """A tokenizer's chat template.

    Raises:
        RowError: (all methods) the template refuses the conversation, or its turns cannot be told for certain.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = dict(tokenizer.special_tokens_map)
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        longest_first = sorted(added, key=len, reverse=True)
        self._added_token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._skeletons: dict[tuple[str, ...], Skeleton | None] = {}

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """Return the text that `apply_chat_template` makes of messages."""
        return self._render([_clean(message) for message in messages], tools, add_generation_prompt)[0]

    def weighted(
        self, messages: Sequence[Message], weights: Sequence[float], tools: list[Any] | None = None
    ) -> tuple[str, list[Interval]]:
        """Return the text and the loss weights of its characters; characters in no interval have 0.

        Args:
            messages: the conversation; a message's own `weight` and `spans` overrule `weights`.
            weights: the weight of each message by default.
            tools: the tools that the template is to describe.
        """
        clean = [_clean(message) for message in messages]
        text, marked = self._render(clean, tools, mark=any(message["role"] == "assistant" for message in clean))
        known = self._filled(clean, tools, text)
        marks = _by_message(clean, text, marked) if marked is not None else {}

        def turn(number: int) -> tuple[int, int]:
            if number in marks:
                return marks[number]
            return (known[number].start, known[number].end) if known else self._turn(clean, number, tools, text)

        def content(number: int) -> tuple[int, int]:
            return known[number].content if known else self._content(clean, number, tools, text)

        intervals: list[Interval] = []
        for number, (message, default) in enumerate(zip(messages, weights, strict=True)):
            own = message.get("weight")
            weight = default if own is None else float(own)
            if weight:
                extent = turn(number) if message["role"] == "assistant" else content(number)
                intervals.append((*extent, weight))
            if message.get("spans"):
                intervals += _span_intervals(clean[number]["content"], message["spans"], text, content(number))
        return text, intervals

    def _render(
        self, clean: list[dict[str, Any]], tools: list[Any] | None, generation_prompt: bool = False, mark: bool = False
    ) -> tuple[str, list[tuple[int, int]] | None]:
        try:
            template = self._tokenizer.get_chat_template(None, tools)
            mark = mark and _GENERATION.search(template) is not None
            rendered: Any = render_jinja_template(
                conversations=[clean],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=mark,
                add_generation_prompt=generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RowError(f"the chat template refuses this conversation: {error}") from error
        texts, marked = rendered
        return texts[0], marked[0] if mark else None

    def _filled(self, clean: list[dict[str, Any]], tools: list[Any] | None, text: str) -> dict[int, Turn] | None:
        """Return where each message stands by the skeleton of these roles, None where it does not tell."""
        if tools or any(message.keys() != {"role", "content"} for message in clean):
            return None
        roles = tuple(message["role"] for message in clean)
        if roles not in self._skeletons:
            self._skeletons[roles] = self._skeleton(roles)
        skeleton = self._skeletons[roles]
        return skeleton.turns(clean, text) if skeleton is not None else None

    def _skeleton(self, roles: tuple[str, ...]) -> Skeleton | None:
        probes = [{"role": role, "content": f"{PAD}{_mark(number)}{PAD}"} for number, role in enumerate(roles)]
        try:
            text = self.render(probes)
            alone = {n: self.render(probes[: n + 1]) for n, role in enumerate(roles) if role == "assistant"}
        except RowError:
            return None
        if any(alone[number].count(_mark(number)) != 1 for number in alone):
            return None
        if any(text.count(_mark(number)) != 1 for number in range(len(roles))):
            return None
        order = sorted(range(len(roles)), key=lambda number: text.index(_mark(number)))
        pieces, strips, margins = [], [], []
        place = 0
        for number in order:
            mark = _mark(number)
            start = text.index(mark)
            end = start + len(mark)
            left, right = not text[place:start].endswith(PAD), not text.startswith(PAD, end)
            start, end = start - (0 if left else len(PAD)), end + (0 if right else len(PAD))
            pieces.append(text[place:start])
            strips.append((left, right))
            place = end
            if roles[number] != "assistant":
                margins.append((0, 0))
                continue
            after = _after(mark, alone[number])
            after = after if right else after.removeprefix(PAD)
            before = start - self._start(probes, number, None, text, start)
            margins.append((before, self._end_of_turn(text[end:], after)))
        return Skeleton(tuple(order), (*pieces, text[place:]), tuple(strips), tuple(margins))

    def _start(
        self, messages: Sequence[Message], number: int, tools: list[Any] | None, text: str, content_start: int
    ) -> int:
        """Return the end of the generation prompt before a message, or its content's start where none is there."""
        try:
            prompt = self.render(messages[:number], tools, add_generation_prompt=True)
        except RowError:
            return content_start
        return len(prompt) if len(prompt) <= content_start and text.startswith(prompt) else content_start

    def _end_of_turn(self, text: str, after_last: str) -> int:
        """Return how many characters of `text`, which begins after a content, end the turn.

        Args:
            text: what the template writes after the content here.
            after_last: what it writes after the content of a last message.
        """
        token = self._added_token.search(after_last)
        ending = after_last[: token.end()] if token else after_last.rstrip() or after_last
        if text.startswith(ending):
            return len(ending)
        token = self._added_token.search(text[: _num_shared(text, after_last)])
        return token.end() if token else 0

    def _turn(self, clean: list[dict[str, Any]], number: int, tools: list[Any] | None, text: str) -> tuple[int, int]:
        """Return where an assistant message stands in a text that no skeleton fits."""
        mark = {"role": "assistant", "content": _mark(number)}
        marked = self.render([*clean[:number], mark], tools)
        if marked.count(_mark(number)) != 1:
            raise _uncertain(number)
        after_last = _after(_mark(number), marked)
        alone = self.render(clean[: number + 1], tools)
        stop = len(alone) - len(after_last) + self._end_of_turn(after_last, after_last)
        start = self._start(clean, number, tools, text, len(text))
        if start < stop and alone.endswith(after_last) and text.startswith(alone[:stop]):
            return start, stop
        first, last = self._changed(clean, number, mark, tools, text)
        region, content = text[first:last].strip(), clean[number].get("content") or ""
        if not region or not (region in content or content.strip() in region):
            raise _uncertain(number)
        end = last + self._end_of_turn(text[last:], after_last)
        return self._start(clean, number, tools, text, first), end

    def _content(self, clean: list[dict[str, Any]], number: int, tools: list[Any] | None, text: str) -> tuple[int, int]:
        """Return where a message's content stands in a text that no skeleton fits."""
        first, last = self._changed(clean, number, {**clean[number], "content": _mark(number)}, tools, text)
        content = clean[number].get("content") or ""
        if text[first:last] not in (content, content.strip(), content.lstrip(), content.rstrip()):
            raise _uncertain(number)
        return first, last

    def _changed(
        self, clean: list[dict[str, Any]], number: int, mark: dict[str, Any], tools: list[Any] | None, text: str
    ) -> tuple[int, int]:
        """Return the characters of `text` that are others when a message is exchanged for a mark."""
        other = self.render([*clean[:number], mark, *clean[number + 1 :]], tools)
        if other.count(_mark(number)) != 1:
            raise _uncertain(number)
        first = _num_shared(text, other)
        return first, len(text) - _num_shared(text[first:][::-1], other[first:][::-1])


def _clean(message: Message) -> dict[str, Any]:
    """Return a message as a template may see it."""
    return {key: value for key, value in message.items() if key not in ("weight", "spans") and value is not None}


def _mark(number: int) -> str:
    return f"{OPEN}{number}{CLOSE}"


def _after(mark: str, text: str) -> str:
    return text[text.index(mark) + len(mark) :]


def _by_message(clean: Sequence[Message], text: str, marked: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Give each assistant message its `{% generation %}` block."""
    assistants = [number for number, message in enumerate(clean) if message["role"] == "assistant"]
    if len(marked) != len(assistants):
        raise RowError(
            f"the chat template marks {len(marked)} generations in a conversation of {len(assistants)} assistant "
            "turns; split the conversation, or use a template that marks every turn"
        )
    for number, (start, end) in zip(assistants, marked, strict=True):
        # A mark inside a macro or a set block is counted from the wrong place.
        if (clean[number].get("content") or "").rstrip()[-16:] not in text[start:end]:
            raise _uncertain(number)
    return dict(zip(assistants, marked, strict=True))


def _span_intervals(
    content: str, spans: Sequence[Mapping[str, Any]], text: str, extent: tuple[int, int]
) -> list[Interval]:
    start, end = extent
    num_blanks = len(content) - len(content.lstrip())
    origin = start if content.startswith(text[start:end]) else start - num_blanks
    intervals = []
    for span in spans:
        first, last = max(origin + span["start"], start), min(origin + span["end"], end)
        if first < last:
            intervals.append((first, last, float(span["weight"])))
    return intervals


def _num_shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def _uncertain(number: int) -> RowError:
    return RowError(
        f"where messages[{number}] stands in the chat template's text cannot be told for certain (the template "
        "rewrites it); simplify the message, or use a template with {% generation %} marks"
    )
