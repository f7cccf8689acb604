"""What is shown is the whole text, and each token in the colour or between the marks of its weight."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import STYLES, tokenizer_of
from temper.data.encode import Encoder
from temper.data.example import Example, Origin, Row, Sequence
from temper.data.show import legend, mark_example, pieces, show_example, style_of

CHATML = tokenizer_of(STYLES[0])
KINDS = {"bytes": tokenizer_of(), "words": tokenizer_of(kind="words")}
MESSAGES = [
    {"role": "user", "content": "two and two?"},
    {"role": "assistant", "content": "four 😀", "weight": 0.5},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes\nfour"},
]
ROW = Row("messages", {"messages": MESSAGES}, {}, Origin("rows.jsonl", 7))
EXAMPLE = Example((Encoder(CHATML, 512).supervised(ROW),), {}, ROW.origin)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(text=st.text(alphabet="ab é😀☃ \n", min_size=1, max_size=30))
def test_pieces_make_up_the_whole_text(kind: str, text: str) -> None:
    tokens = KINDS[kind](text).input_ids
    weights = np.arange(len(tokens), dtype=np.float32)
    shown = list(pieces(Sequence(np.array(tokens, dtype=np.int32), weights), KINDS[kind]))
    assert "".join(piece for piece, _ in shown) == KINDS[kind].decode(tokens)
    assert len(shown) <= len(tokens) and shown[-1][1] == len(tokens) - 1


def test_marks_stand_around_what_is_supervised() -> None:
    assert mark_example(EXAMPLE, CHATML).partition("\n")[2] == (
        "<|im_start|>user⏎\ntwo and two?<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦0.5|four 😀<|im_end|>⟧⏎\n"
        "<|im_start|>user⏎\nsure?<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦yes⏎\nfour<|im_end|>⟧⏎\n\n"
    )


def test_colours_cover_exactly_the_same_text() -> None:
    shown = show_example(EXAMPLE, CHATML)
    for style, learnt in (("yellow", "four 😀<|im_end|>"), ("green", "yes⏎\nfour<|im_end|>")):
        spans = [span for span in shown.spans if str(span.style).startswith(style)]
        assert "".join(shown.plain[span.start : span.end] for span in spans) == learnt
    assert re.sub("[⟦⟧]|0.5[|]", "", mark_example(EXAMPLE, CHATML)) == shown.plain


def test_heading_counts() -> None:
    sequence = EXAMPLE.sequences[0]
    heading = mark_example(EXAMPLE, CHATML).partition("\n")[0]
    num_supervised = np.count_nonzero(sequence.weights_T)
    assert heading == f"rows.jsonl:7 · response · {len(sequence.tokens_T)} tokens, {num_supervised} supervised"


def test_legend_shows_each_colour() -> None:
    assert {str(span.style) for span in legend().spans} == {style_of(weight) for weight in (0, 0.5, 1, 2)}
