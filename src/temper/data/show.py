"""An example for the eye: every token in the colour of its loss weight, or between marks where there is no colour."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.text import Text

from temper.data.example import Example, Sequence

WINDOW = 8
"""tokens decoded together: a character may take several tokens, and a token's blank hang on the one before"""


def style_of(weight: float) -> str:
    """Return the colour of a loss weight: context, less than one, one, more than one."""
    if weight == 0:
        return "dim"
    return "yellow" if weight < 1 else "green" if weight == 1 else "bold magenta"


def legend() -> Text:
    """Return what the colours mean."""
    named = [(0.0, "context (0)"), (0.5, "below 1"), (1.0, "1"), (2.0, "above 1")]
    parts: list[tuple[str, str] | str] = ["loss weight: "]
    for weight, name in named:
        parts += [(name, style_of(weight)), "  "]
    return Text.assemble(*parts[:-1])


def show_example(example: Example, tokenizer: Any) -> Text:
    """Return an example with every token coloured by its weight; the second shade of a colour parts neighbours.

    Args:
        example: the encoded row.
        tokenizer: the tokenizer that made it.
    """
    shown = Text()
    for sequence in example.sequences:
        shown.append(f"{_heading(example, sequence)}\n", style="bold")
        for number, (piece, weight) in enumerate(pieces(sequence, tokenizer)):
            underline = " underline" if weight and number % 2 else ""
            shown.append(_visible(piece), style=style_of(weight) + underline)
        shown.append("\n")
    return shown


def mark_example(example: Example, tokenizer: Any) -> str:
    """Return an example without colour: what is supervised stands between marks, with its weight where it is not 1.

    `context ⟦learnt⟧ context ⟦0.5|learnt by half⟧`
    """
    lines = []
    for sequence in example.sequences:
        lines.append(_heading(example, sequence))
        text = ""
        for weight, run in groupby(pieces(sequence, tokenizer), key=lambda piece: piece[1]):
            written = _visible("".join(piece for piece, _ in run))
            number = "" if weight == 1 else f"{weight:g}|"
            text += f"⟦{number}{written}⟧" if weight else written
        lines.append(text)
    return "\n".join(lines) + "\n"


def pieces(sequence: Sequence, tokenizer: Any) -> Iterator[tuple[str, float]]:
    """Yield the text and the weight of each token; tokens that share a character come together.

    The texts, one after another, are the text of the whole sequence. Tokens that come together have their largest
    weight.
    """
    tokens, weights = sequence.tokens_T.tolist(), sequence.weights_T.tolist()
    start = 0
    for end in range(1, len(tokens) + 1):
        first = max(0, start - WINDOW)
        before, together = tokenizer.decode(tokens[first:start]), tokenizer.decode(tokens[first:end])
        if not together.endswith("\ufffd") or end == len(tokens):
            yield together[len(before) :], max(weights[start:end])
            start = end


def _heading(example: Example, sequence: Sequence) -> str:
    num_supervised = int((sequence.weights_T > 0).sum())
    cut = f", {sequence.num_truncated} cut off" if sequence.num_truncated else ""
    return f"{example.origin} · {sequence.role} · {len(sequence.tokens_T)} tokens, {num_supervised} supervised{cut}"


def _visible(text: str) -> str:
    return text.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "⇥")
