"""Tokenizers: what a folder's files say, and nothing else.

Decision: for some families transformers builds its own tokenizer class from the vocabulary alone and drops the
normalizer, pre-tokenizer and decoder that tokenizer.json declares. Where the folder declares the general class,
tokenizer.json is the whole truth and is read as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from temper.core.errors import ModelError

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken")
"""what a tokenizer can be read from; without any, some classes of transformers begin an empty one"""
GENERAL_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load a folder's tokenizer.

    Raises:
        ModelError: there is none, or it has no fast form.
    """
    if not any(next(folder.glob(pattern), None) for pattern in FILES):
        raise ModelError(f"{folder}: holds no tokenizer; put its tokenizer.json and tokenizer_config.json there")
    try:
        if _declares_general_class(folder):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({error}); put tokenizer.json and tokenizer_config.json there"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{folder}: its tokenizer is a {type(tokenizer).__name__}, which has no tokenizer.json; "
            "convert it to a fast tokenizer"
        )
    return tokenizer


def describe_tokenizer(tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """Return, as plain JSON values, what decides how text becomes tokens.

    Padding and truncation do not count: callers switch them on and off.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    return [backend, special, tokenizer.chat_template]


def _declares_general_class(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    config = json.loads(path.read_text(encoding="utf-8"))
    return config.get("tokenizer_class") in GENERAL_CLASSES and "auto_map" not in config
