"""Rows to tokens: what an objective's `encode` is written on.

Decisions:
- A conversation becomes exactly the tokens of `apply_chat_template(tokenize=True)`; a token is supervised when any
  of its characters is (`templates.py` says which are), with the largest of their weights.
- A prompt in plain text stays plain, whether or not the model has a chat template. Its tokens are made from the
  prompt alone, so that training sees the very context that `prompt` hands to generation. The completion continues
  it as the whole text would be tokenised; where a token would reach over the boundary, the completion is tokenised
  by itself.
- Begin-of-sequence is written where the tokenizer writes it (and in a chat where the template does);
  end-of-sequence ends every plain text and completion.
- Rows are tokenised together (`supervised_many`): one call for many rows costs a fraction of a call for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from temper.core.errors import ModelError
from temper.data.example import Row, Sequence
from temper.data.templates import ChatTemplate, Interval, RowError
from temper.models.model import Model

__all__ = ["Encoder", "RowError"]


@dataclass(frozen=True)
class _Chat:
    """A rendered conversation and the weights of its characters."""

    text: str
    intervals: list[Interval]


@dataclass(frozen=True)
class _Plain:
    """Plain text, in which everything after the prompt is supervised."""

    prompt: str
    completion: str


_Draft = _Chat | _Plain
_Weighted = tuple[NDArray[np.int32], NDArray[np.float32]]


@dataclass(frozen=True)
class Encoder:
    """Turns rows into sequences with a tokenizer and the model's own chat template.

    Args:
        tokenizer: a transformers fast tokenizer.
        max_length: the longest sequence, in tokens.
        truncate: cut longer ones at the end (counted in `Sequence.num_truncated`) instead of refusing them.
        num_embedded: how many tokens, from the first, the model can read; None for all that the tokenizer has.

    Raises:
        ModelError: the tokenizer is not a fast one, so the characters of a token are not known.
    """

    tokenizer: Any
    max_length: int
    truncate: bool = False
    num_embedded: int | None = None

    @classmethod
    def of(cls, model: Model, max_length: int, truncate: bool = False) -> Encoder:
        """Return the encoder of a model, which can read no more tokens than it has positions."""
        num_embedded = model.module.get_input_embeddings().num_embeddings
        return cls(model.tokenizer, min(max_length, model.num_positions), truncate, num_embedded)

    def __post_init__(self) -> None:
        assert self.max_length >= 2
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer {type(self.tokenizer).__name__} does not tell which characters a token stands for; "
                "use a model that has a tokenizer.json"
            )

    def supervised(self, row: Row, role: str = "response") -> Sequence:
        """Encode a `messages`, `completion`, `label` or `text` row, with loss on what the model is to write.

        Raises RowError when it is over-long, empty or has no supervised token."""
        return _raised(self.supervised_many([row], role)[0])

    def supervised_many(self, rows: Iterable[Row], role: str = "response") -> list[Sequence | RowError]:
        """Encode rows as `supervised` does, with one call of the tokenizer; a RowError takes its row's place."""
        drafts = [self._draft(row, "completion") for row in rows]
        return [self._sequence(encoded, role) for encoded in self._encode(drafts)]

    def pair(self, row: Row) -> tuple[Sequence, Sequence]:
        """Encode a `preference` row as its `chosen` and `rejected` sequences.

        Raises RowError when one of them is over-long or has no supervised token."""
        chosen, rejected = self._encode([self._draft(row, "chosen"), self._draft(row, "rejected")])
        return _raised(self._sequence(chosen, "chosen")), _raised(self._sequence(rejected, "rejected"))

    def plain(self, row: Row) -> list[Sequence]:
        """Encode any row as running text with loss on every token; a long one becomes several sequences.

        Each piece begins with the last token of the one before, so that every token but the first is predicted
        once. A conversation is running text as its template writes it; of a preference the chosen side is read.
        """
        encoded = _raised(self._encode([self._draft(row, "chosen" if row.format == "preference" else "completion")])[0])
        tokens_T = encoded[0]
        if len(tokens_T) < 2:
            raise RowError("the text is a single token, which nothing precedes")
        pieces = []
        for start in range(0, len(tokens_T) - 1, self.max_length - 1):
            piece_T = tokens_T[start : start + self.max_length]
            weights_T = np.ones(len(piece_T), dtype=np.float32)
            weights_T[0] = 0
            pieces.append(Sequence(piece_T, weights_T))
        return pieces

    def read(self, text: str, role: str = "text") -> Sequence:
        """Encode a text that is only read: nothing is predicted, and no end-of-sequence is written.

        Raises RowError when it is over-long."""
        tokens_T = np.array([*self._lead, *self._tokenize([text])[0].ids], dtype=np.int32)
        return self._only_read(tokens_T, role)

    def read_words(self, words: Many[str]) -> tuple[Sequence, list[int]]:
        """Encode words, joined by blanks, that are only read; also return the place of each one's first token.

        Where the text is cut, the words that are gone have no place."""
        starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
        encoding = self._tokenize([" ".join(words)])[0]
        tokens_T = np.array([*self._lead, *encoding.ids], dtype=np.int32)
        sequence = self._only_read(tokens_T, "text")
        ends = [end for _, end in encoding.offsets]
        places = [len(self._lead) + int(place) for place in np.searchsorted(ends, starts, side="right")]
        if len(set(places)) < len(places):
            raise RowError("two words share a token, so that they cannot have tags of their own")
        return sequence, [place for place in places if place < len(sequence.tokens_T)]

    def _only_read(self, tokens_T: NDArray[np.int32], role: str) -> Sequence:
        if not len(tokens_T):
            raise RowError("the text has no token")
        num_truncated = max(0, len(tokens_T) - self.max_length)
        if num_truncated and not self.truncate:
            raise RowError(
                f"{len(tokens_T)} tokens are more than {self.max_length}, which is max_length or the model's own limit"
            )
        error = self._unreadable(tokens_T)
        if error is not None:
            raise error
        tokens_T = tokens_T[: self.max_length]
        return Sequence(tokens_T, np.zeros(len(tokens_T), dtype=np.float32), role, num_truncated)

    def prompt(self, row: Row) -> list[int]:
        """Return the tokens up to where the model is to start writing (generation prompt included).

        Raises RowError for a `text` row, and for messages in which the assistant speaks first."""
        if row.format == "text":
            raise RowError("running text has no prompt; use rows of prompt and completion, or messages")
        prompt, tools = row.content.get("prompt"), row.content.get("tools")
        if isinstance(prompt, str):
            return self._checked([*self._lead, *self._tokenize([prompt])[0].ids])
        if prompt is None:
            messages = row.content["messages"]
            prompt = messages[: max(n for n, message in enumerate(messages) if message["role"] == "assistant")]
        if not prompt:
            raise RowError("nothing stands before the assistant's turn")
        return self._checked(self._tokenize([self._template.render(prompt, tools, add_generation_prompt=True)])[0].ids)

    def _checked(self, tokens: Iterable[int]) -> list[int]:
        tokens_T = np.fromiter(tokens, dtype=np.int32)
        error = self._unreadable(tokens_T)
        if error is not None:
            raise error
        return [int(token) for token in tokens_T]

    def _draft(self, row: Row, answer: str) -> _Draft | RowError:
        content: Mapping[str, Any] = row.content
        try:
            if row.format == "text":
                return _Plain("", content["text"])
            if row.format == "messages":
                messages = content["messages"]
                weights = [float(message["role"] == "assistant") for message in messages]
            elif isinstance(content["prompt"], str):
                return _Plain(content["prompt"], content[answer])
            else:
                messages = [*content["prompt"], *content[answer]]
                weights = [0.0] * len(content["prompt"])
                weights += [float(message["role"] == "assistant") for message in content[answer]]
            return _Chat(*self._template.weighted(messages, weights, content.get("tools")))
        except KeyError as error:
            return RowError(f"a row of format {row.format} has no {error}")
        except RowError as error:
            return error

    def _encode(self, drafts: Many[_Draft | RowError]) -> list[_Weighted | RowError]:
        texts: list[str] = []
        for draft in drafts:
            if isinstance(draft, _Chat):
                texts.append(draft.text)
            elif isinstance(draft, _Plain):
                texts += [draft.prompt, draft.prompt + draft.completion] if draft.prompt else [draft.completion]
        encodings = iter(self._tokenize(texts))
        encoded: list[_Weighted | RowError] = []
        for draft in drafts:
            if isinstance(draft, RowError):
                encoded.append(draft)
            elif isinstance(draft, _Chat):
                encoded.append(_chat_tokens(draft, next(encodings)))
            elif not self._eos:
                encoded.append(RowError("the tokenizer has no end-of-sequence token; set its eos_token"))
            else:
                prompt = next(encodings).ids if draft.prompt else []
                whole = next(encodings).ids
                rest = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._continued(draft.completion)
                context = self._lead + prompt
                tokens_T = np.array(context + rest + self._eos, dtype=np.int32)
                encoded.append((tokens_T, (np.arange(len(tokens_T)) >= len(context)).astype(np.float32)))
        return [pair if isinstance(pair, RowError) else self._unreadable(pair[0]) or pair for pair in encoded]

    def _unreadable(self, tokens_T: NDArray[np.int32]) -> RowError | None:
        """Return what is wrong with tokens that the model has no embedding for."""
        if self.num_embedded is None or not len(tokens_T) or tokens_T.max() < self.num_embedded:
            return None
        number = int(tokens_T[tokens_T >= self.num_embedded][0])
        return RowError(
            f"the token {self.tokenizer.convert_ids_to_tokens(number)!r} (number {number}) is not among the "
            f"{self.num_embedded} that the model embeds; give the tokenizer that belongs to the model, or take the "
            "token out of the text and the chat template"
        )

    def _sequence(self, encoded: _Weighted | RowError, role: str) -> Sequence | RowError:
        if isinstance(encoded, RowError):
            return encoded
        tokens_T, weights_T = encoded
        num_truncated = max(0, len(tokens_T) - self.max_length)
        if num_truncated and not self.truncate:
            return RowError(
                f"{len(tokens_T)} tokens are more than {self.max_length}, which is max_length or the model's own limit"
            )
        tokens_T, weights_T = tokens_T[: self.max_length], weights_T[: self.max_length]
        weights_T[:1] = 0
        if not weights_T.any():
            cause = f" among the first {self.max_length}, to which it was cut" if num_truncated else ""
            return RowError(f"no token is supervised{cause}")
        return Sequence(tokens_T, weights_T, role, num_truncated)

    def _tokenize(self, texts: list[str]) -> list[Any]:
        """Return the `tokenizers.Encoding` of each text, without any special token of the tokenizer's own."""
        if not texts:
            return []
        encodings = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        ).encodings
        return list(encodings)

    def _continued(self, text: str) -> list[int]:
        """Tokenise text that continues another; some tokenizers put a space before what stands first."""
        for before in ("\n", "a", "0", ".", ":", ")"):
            alone, together = (encoding.ids for encoding in self._tokenize([before, before + text]))
            if together[: len(alone)] == alone:
                return list(together[len(alone) :])
        return list(self._tokenize([text])[0].ids)

    @cached_property
    def _template(self) -> ChatTemplate:
        if not self.tokenizer.chat_template:
            raise RowError(
                "the tokenizer has no chat template, which messages need; put a chat_template.jinja into the model's "
                "folder, or write prompt and completion as plain text"
            )
        return ChatTemplate(self.tokenizer)

    @cached_property
    def _lead(self) -> list[int]:
        """What the tokenizer writes at the start of a text: begin-of-sequence, or nothing."""
        bare = self.tokenizer("a", add_special_tokens=False).input_ids
        full = self.tokenizer("a").input_ids
        starts = [number for number in range(len(full)) if full[number : number + len(bare)] == bare]
        return list(full[: starts[0]]) if starts else []

    @cached_property
    def _eos(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]


def _chat_tokens(draft: _Chat, encoding: Any) -> _Weighted:
    weights = np.zeros(len(draft.text) + 1, dtype=np.float32)
    for start, end, weight in draft.intervals:
        weights[start:end] = weight
    tokens_T = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1)
    # A pair (start, end) gives the largest weight of the characters between; every second value is one of a pair.
    return tokens_T, np.maximum.reduceat(weights, offsets)[::2] if len(offsets) else weights[:0]


_Result = TypeVar("_Result")


def _raised(result: _Result | RowError) -> _Result:
    if isinstance(result, RowError):
        raise result
    return result
