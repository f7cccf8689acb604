"""Tokenizers made on the spot: exact, deterministic, whole after saving."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from temper.lab.skill import Skill
from temper.lab.tokenizer import CHARACTERS, WORDS, character_tokenizer, train_bpe

CHARACTER = character_tokenizer()
TEXTS = ["def add(first, second):\n    return first + second\n" * 30, "class Number:\n    pass\n", "été, größer, 数\n"]
BPE = train_bpe(TEXTS, 300)
BOTH = pytest.mark.parametrize("tokenizer", [CHARACTER, BPE], ids=["character", "bpe"])
CHAT = [{"role": "user", "content": "copy:ab="}, {"role": "assistant", "content": "ab"}]


def test_characters_and_words_are_single_tokens() -> None:
    assert CHARACTER.tokenize("reverse_shift:ab=") == ["reverse_shift:", "a", "b", "="]
    assert CHARACTER.tokenize("reverse ab") == [*"reverse", " ", "a", "b"]
    assert len(CHARACTER) == 8 + len(CHARACTERS) + len(WORDS)


@pytest.mark.parametrize("name", sorted(Skill.methods()))
def test_every_skill_can_be_written(name: str) -> None:
    skill = Skill.parse(name)
    for argument in skill.arguments("train", 200, 0):
        text = skill.prompt(argument) + skill.answer(argument)
        tokens = CHARACTER(text, add_special_tokens=False).input_ids
        assert CHARACTER.unk_token_id not in tokens and CHARACTER.decode(tokens) == text


@given(st.text(CHARACTERS))
def test_characters_come_back(text: str) -> None:
    assert CHARACTER.decode(CHARACTER(text, add_special_tokens=False).input_ids) == text


@given(st.text())
def test_bytes_come_back(text: str) -> None:
    if not any(special in text for special in BPE.all_special_tokens):
        assert BPE.decode(BPE(text, add_special_tokens=False).input_ids) == text.encode("utf-8", "replace").decode()


@BOTH
def test_a_text_begins_and_a_chat_is_marked(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("ab").input_ids[0] == tokenizer.bos_token_id
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "<bos><user>copy:ab=<assistant>ab<eos>"
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<bos><user>copy:ab=<assistant>"
    encoded: Any = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    answer = [t for t, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(answer) == "ab<eos>"


@BOTH
def test_saved_is_loaded(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.all_special_tokens == tokenizer.all_special_tokens
    assert loaded(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert loaded.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_bpe_has_the_asked_size_and_learns_what_is_frequent() -> None:
    assert len(BPE) == 300
    assert len(train_bpe(TEXTS, 264)) == 264
    words = BPE.tokenize("return first")
    assert len(words) < 6 and BPE.unk_token_id not in BPE("数").input_ids


def test_bpe_is_the_same_in_another_process() -> None:
    program = f"from temper.lab.tokenizer import train_bpe; print(train_bpe({TEXTS!r}, 300).backend_tokenizer.to_str())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == json.loads(BPE.backend_tokenizer.to_str())
