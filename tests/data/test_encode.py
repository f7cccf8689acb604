"""Tokens equal `apply_chat_template`'s, and the mask is each style's own account of what the assistant writes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import STYLES, Style, tokenizer_of
from temper.data.encode import Encoder, RowError
from temper.data.example import Origin, Row

TOKENIZERS = {style.name: tokenizer_of(style) for style in STYLES}
ORIGIN = Origin("rows.jsonl", 1)

turn_text = st.one_of(
    st.sampled_from(
        ["a", "assistant", "user\n", "  two  ", "\nfour\n", "4", "<|end|>", "café 😀☃", "<think>", "[/INST] x"]
    ),
    st.text(alphabet="ab \n<|>/é😀", min_size=1, max_size=12),
).filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: Any) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": draw(turn_text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(turn_text)})
        messages.append({"role": "assistant", "content": draw(turn_text)})
    return messages


def row(messages: list[dict[str, Any]], **content: Any) -> Row:
    return Row("messages", {"messages": messages, **content}, {}, ORIGIN)


def fitted(style: Style, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return messages if style.has_system else [message for message in messages if message["role"] != "system"]


def token_weights(tokenizer: Any, text: str, characters: np.ndarray) -> np.ndarray:
    """The naive reference: a token weighs as much as its heaviest character."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    weights = [max(characters[start:end], default=0.0) for start, end in encoded["offset_mapping"]]
    return np.array([0.0, *weights[1:]], dtype=np.float32)


def characters(parts: list[tuple[str, bool]]) -> np.ndarray:
    return np.concatenate([np.full(len(text), float(is_supervised)) for text, is_supervised in parts])


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@settings(max_examples=60)
@given(messages=conversations())
def test_tokens_and_mask_of_every_style(style: Style, messages: list[dict[str, str]]) -> None:
    tokenizer, messages = TOKENIZERS[style.name], fitted(style, messages)
    parts = style.parts(messages)
    text = "".join(part for part, _ in parts)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text, "the style's own account of its text"
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    try:
        sequence = Encoder(tokenizer, 4096).supervised(row(messages))
    except RowError as error:
        # What cannot be told is refused; of these styles that is only text in which reasoning tags stand loose.
        assert style.name == "qwen3" and "cannot be told" in str(error)
        assert any("<think>" in message["content"] or "</think>" in message["content"] for message in messages)
        return
    assert sequence.tokens_T.tolist() == expected
    np.testing.assert_array_equal(sequence.weights_T, token_weights(tokenizer, text, characters(parts)))


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_mask_is_generation_support_or_equal_to_it(style: Style) -> None:
    """Where a template marks generations, `apply_chat_template`'s own mask is ours."""
    tokenizer = TOKENIZERS[style.name]
    if style.name != "generation":
        return
    messages = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}] * 2
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert Encoder(tokenizer, 512).supervised(row(messages)).weights_T.tolist() == out["assistant_masks"]


def test_reasoning_of_earlier_turns_is_dropped_and_of_the_last_one_learnt() -> None:
    style = next(style for style in STYLES if style.name == "qwen3")
    messages = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\nfour"},
        {"role": "user", "content": "3+3"},
        {"role": "assistant", "content": "<think>\nadd again\n</think>\n\nsix"},
    ]
    tokenizer = TOKENIZERS["qwen3"]
    sequence = Encoder(tokenizer, 512).supervised(row(messages))
    learnt = tokenizer.decode(sequence.tokens_T[sequence.weights_T > 0])
    assert learnt == "four<|im_end|><think>\nadd again\n</think>\n\nsix<|im_end|>"
    assert tokenizer.decode(sequence.tokens_T) == "".join(text for text, _ in style.parts(messages))


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_prompt_is_the_context_that_training_saw(style: Style) -> None:
    tokenizer = TOKENIZERS[style.name]
    messages = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]
    encoder = Encoder(tokenizer, 512)
    sequence, prompt = encoder.supervised(row(messages)), encoder.prompt(row(messages))
    first = int(np.flatnonzero(sequence.weights_T)[0])
    assert prompt == sequence.tokens_T[:first].tolist()
    assert prompt == tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert prompt.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_last_supervised_token_is_the_end_of_turn(style: Style) -> None:
    tokenizer = TOKENIZERS[style.name]
    messages = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}]
    sequence = Encoder(tokenizer, 512).supervised(row(messages))
    ends = {"chatml": "<|im_end|>", "chatml_default": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>"}
    ends |= {"gemma": "<end_of_turn>", "phi3": "<|end|>", "generation": "<|end|>\n", "plain_words": "\n\n"}
    learnt = tokenizer.decode(sequence.tokens_T[sequence.weights_T > 0])
    assert learnt.endswith(ends.get(style.name, "</s>"))


WEIGHTED = [
    {"role": "user", "content": " two and two? ", "weight": 0.25},
    {"role": "assistant", "content": "three", "weight": 0},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "  no, it is four", "weight": 2.0, "spans": [{"start": 6, "end": 8, "weight": 0}]},
]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@pytest.mark.parametrize("is_certain", [True, False], ids=["skeleton", "exchange"])
def test_weights_of_messages_and_spans(style: Style, is_certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of finding a message give the same weights: by skeleton, and by exchanging it for a mark."""
    if not is_certain:
        monkeypatch.setattr("temper.data.templates.ChatTemplate._filled", lambda *arguments: None)
    tokenizer = TOKENIZERS[style.name]
    clean = [{"role": message["role"], "content": message["content"]} for message in WEIGHTED]
    parts = style.parts(clean)
    text = "".join(part for part, _ in parts)
    weights = np.zeros(len(text), dtype=np.float32)
    question = text.index("two and two?")
    kept = text[question - 1] == " " and style.name not in ("llama2", "llama3", "gemma")
    weights[question - kept : question + len("two and two?") + kept] = 0.25
    places = np.cumsum([0, *(len(part) for part, _ in parts)])
    supervised = [number for number, (_, is_supervised) in enumerate(parts) if is_supervised]
    last = [number for number in supervised if places[number] >= text.index("sure?")]
    for number in last:
        weights[places[number] : places[number + 1]] = 2.0
    answer = text.index("no, it is four")
    weights[answer + 4 : answer + 6] = 0
    sequence = Encoder(tokenizer, 512).supervised(row(WEIGHTED))
    assert sequence.tokens_T.tolist() == tokenizer.apply_chat_template(clean, return_dict=False)
    np.testing.assert_array_equal(sequence.weights_T, token_weights(tokenizer, text, weights))


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@settings(max_examples=25)
@given(messages=conversations())
def test_exchanging_a_message_finds_what_the_skeleton_finds(style: Style, messages: list[dict[str, str]]) -> None:
    if style.name in ("generation", "qwen3"):
        return
    tokenizer, messages = TOKENIZERS[style.name], fitted(style, messages)
    template = Encoder(tokenizer, 512)._template
    text = template.render(messages)
    turns = template._filled(messages, None, text)
    assert turns is not None
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            found = template._turn(messages, number, None, text)
            # The exchange knows no generation prompt where earlier turns are written otherwise; then it begins later.
            assert found[1] == turns[number].end and turns[number].start <= found[0] <= turns[number].content[0]


def test_tool_calls_are_learnt() -> None:
    tokenizer = tokenizer_of(STYLES[0])
    tokenizer.chat_template = """\
{%- if tools %}{{- '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{- '[call]' + call.function | tojson }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "four"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    sequence = Encoder(tokenizer, 512).supervised(row(messages, tools=tools))
    expected = tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)
    assert sequence.tokens_T.tolist() == expected
    learnt = tokenizer.decode(sequence.tokens_T[sequence.weights_T > 0])
    assert learnt == '[call]{"name": "add", "arguments": {"a": 2}}<|im_end|>four<|im_end|>'


def test_what_cannot_be_told_is_refused() -> None:
    tokenizer = tokenizer_of(STYLES[0])
    tokenizer.chat_template = "{%- for message in messages %}{{- (message.content + '\\n') * 2 }}{%- endfor %}"
    with pytest.raises(RowError, match=r"messages\[1\].*cannot be told"):
        Encoder(tokenizer, 512).supervised(
            row([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
        )


def test_a_template_that_refuses_is_a_row_error() -> None:
    system = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "x"}]
    with pytest.raises(RowError, match="System role not supported"):
        Encoder(TOKENIZERS["gemma"], 512).supervised(row([*system, {"role": "assistant", "content": "y"}]))


def test_no_template_is_a_row_error() -> None:
    with pytest.raises(RowError, match="no chat template"):
        Encoder(tokenizer_of(), 512).supervised(row([{"role": "assistant", "content": "y"}]))


BYTES, WORDS = tokenizer_of(), tokenizer_of(kind="words")


def completion(prompt: Any, answer: Any, **more: Any) -> Row:
    return Row("label" if more else "completion", {"prompt": prompt, "completion": answer, **more}, {}, ORIGIN)


@pytest.mark.parametrize("kind", ["bytes", "words"])
@settings(max_examples=150)
@given(prompt=turn_text, answer=turn_text)
def test_plain_completions(kind: str, prompt: str, answer: str) -> None:
    tokenizer = {"bytes": BYTES, "words": WORDS}[kind]
    encoder = Encoder(tokenizer, 4096)
    sequence, context = encoder.supervised(completion(prompt, answer)), encoder.prompt(completion(prompt, answer))
    assert context == tokenizer(prompt).input_ids, "generation begins with what the tokenizer makes of the prompt"
    assert sequence.tokens_T[: len(context)].tolist() == context, "and training saw just that"
    np.testing.assert_array_equal(sequence.weights_T, np.arange(len(sequence.tokens_T)) >= len(context))
    assert sequence.tokens_T[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(sequence.tokens_T[1:-1]) == prompt + answer, "no blank comes in at the boundary"


def test_a_token_that_would_reach_over_the_boundary_is_not_made() -> None:
    word = max((token for token in BYTES.get_vocab() if token.isalpha() and token.isascii()), key=len)
    whole = BYTES(word, add_special_tokens=False).input_ids
    assert len(whole) == 1 and len(word) > 3
    sequence = Encoder(BYTES, 64).supervised(completion(word[:2], word[2:]))
    assert whole[0] not in sequence.tokens_T
    assert BYTES.decode(sequence.tokens_T[sequence.weights_T > 0]) == word[2:] + "</s>"


def test_a_token_that_the_model_does_not_embed_makes_a_bad_row() -> None:
    encoder = Encoder(BYTES, 64, num_embedded=BYTES.eos_token_id + 1)
    ids = BYTES("abc", add_special_tokens=False).input_ids
    assert max(ids) >= encoder.num_embedded > BYTES.eos_token_id
    with pytest.raises(RowError, match=r"the token '.+' \(number \d+\) is not among the \d+ that the model embeds"):
        encoder.supervised(completion("abc", "d"))
    with pytest.raises(RowError, match="is not among"):
        encoder.prompt(completion("abc", "d"))
    whole = Encoder(BYTES, 64, num_embedded=len(BYTES))
    assert whole.prompt(completion("abc", "d")) == Encoder(BYTES, 64).prompt(completion("abc", "d"))


def test_messages_as_prompt_leave_earlier_turns_as_context() -> None:
    tokenizer = TOKENIZERS["chatml"]
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    answer = [{"role": "assistant", "content": "d"}]
    encoder = Encoder(tokenizer, 512)
    sequence = encoder.supervised(completion(prompt, answer))
    assert tokenizer.decode(sequence.tokens_T[sequence.weights_T > 0]) == "d<|im_end|>"
    assert encoder.prompt(completion(prompt, answer)) == tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False
    )


def test_pair_shares_its_prompt() -> None:
    encoder = Encoder(BYTES, 64)
    content = {"prompt": "two and two? ", "chosen": "four", "rejected": "five or so"}
    preference = Row("preference", content, {}, ORIGIN)
    chosen, rejected = encoder.pair(preference)
    prompt = encoder.prompt(preference)
    assert (chosen.role, rejected.role) == ("chosen", "rejected")
    for sequence, answer in ((chosen, "four"), (rejected, "five or so")):
        assert sequence.tokens_T[: len(prompt)].tolist() == prompt
        assert BYTES.decode(sequence.tokens_T[sequence.weights_T > 0]) == answer + "</s>"


def test_plain_text_predicts_every_token_once() -> None:
    text = "What is two and two? It is four, of course. " * 5
    whole = [*BYTES(text).input_ids, BYTES.eos_token_id]
    pieces = Encoder(BYTES, 16).plain(Row("text", {"text": text}, {}, ORIGIN))
    assert len(pieces) > 3 and all(2 <= len(piece.tokens_T) <= 16 for piece in pieces)
    predicted = [token for piece in pieces for token in piece.tokens_T[piece.weights_T > 0].tolist()]
    assert predicted == whole[1:]
    for before, after in pairwise(pieces):
        assert before.tokens_T[-1] == after.tokens_T[0]
    assert Encoder(BYTES, 4096).supervised(Row("text", {"text": text}, {}, ORIGIN)).tokens_T.tolist() == whole


def test_over_long_is_refused_or_cut_and_counted() -> None:
    long = completion("two and two? ", "four " * 50)
    whole = Encoder(BYTES, 4096).supervised(long)
    with pytest.raises(RowError, match=rf"{len(whole.tokens_T)} tokens are more than 20"):
        Encoder(BYTES, 20).supervised(long)
    cut = Encoder(BYTES, 20, truncate=True).supervised(long)
    assert cut.num_truncated == len(whole.tokens_T) - 20
    assert cut.tokens_T.tolist() == whole.tokens_T[:20].tolist()
    with pytest.raises(RowError, match="no token is supervised among the first 2, to which it was cut"):
        Encoder(BYTES, 2, truncate=True).supervised(long)


def test_no_supervised_token_is_refused() -> None:
    silent = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    with pytest.raises(RowError, match="no token is supervised"):
        Encoder(TOKENIZERS["chatml"], 64).supervised(row(silent))


def test_many_equal_one_by_one() -> None:
    rows = [completion("a ", "b " * number) for number in range(1, 40)]
    encoder = Encoder(BYTES, 30)
    for one, together in zip(rows, encoder.supervised_many(rows), strict=True):
        try:
            expected = encoder.supervised(one)
        except RowError as error:
            assert str(together) == str(error)
        else:
            assert not isinstance(together, RowError)
            assert expected.tokens_T.tolist() == together.tokens_T.tolist()
            assert expected.weights_T.tolist() == together.weights_T.tolist()
