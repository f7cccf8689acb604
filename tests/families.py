"""Tiny random models of every supported family, and a tiny tokenizer made on the spot.

Sizes are awkward on purpose: 97 tokens, head sizes that are not width / heads, grouped heads, windows of 6 tokens
that really cut, biases and norms that are not 0 and 1. Dropout is off, so that training mode changes nothing.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from temper.models.load import as_model
from temper.models.model import Model

VOCABULARY = 97
WINDOW = 6
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = string.ascii_letters + string.digits + " \n.,:;!?'\"()[]{}<>_-+*/=|@#"


def tiny_tokenizer(vocab_size: int = VOCABULARY, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters and, in what room is left, pairs of letters.

    `<pad>` is 0, `<bos>` 1 (put before every encoded text), `<eos>` 2, `<unk>` 3.
    """
    first = ["th", "he", "in"]
    pairs = first + [a + b for a, b in itertools.product(string.ascii_lowercase, repeat=2) if a + b not in first]
    tokens = [*SPECIAL, *CHARACTERS, *pairs][:vocab_size]
    merges = [(token[0], token[1]) for token in tokens[len(SPECIAL) + len(CHARACTERS) :]]
    assert len(tokens) == vocab_size, f"{vocab_size} tokens; at most {len(tokens)} can be made"
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = chat_template
    return fast


_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA_LIKE: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 72,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
_NO_DROPOUT: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

_CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": partial(transformers.LlamaConfig, **_LLAMA_LIKE),
    "mistral": partial(transformers.MistralConfig, **_LLAMA_LIKE, head_dim=16, sliding_window=WINDOW),
    "qwen2": partial(transformers.Qwen2Config, **{**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen3": partial(transformers.Qwen3Config, **_LLAMA_LIKE, head_dim=16),
    "gemma2": partial(
        transformers.Gemma2Config,
        **{**_LLAMA_LIKE, "tie_word_embeddings": True},
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        # Low enough that the caps bend what these small models say.
        final_logit_softcapping=3.0,
        attn_logit_softcapping=2.0,
    ),
    "gemma3": partial(
        transformers.Gemma3TextConfig,
        **{**_LLAMA_LIKE, "tie_word_embeddings": True},
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": partial(transformers.Phi3Config, **_LLAMA_LIKE, sliding_window=WINDOW),
    "olmo2": partial(transformers.Olmo2Config, **_LLAMA_LIKE),
    "gpt2": partial(transformers.GPT2Config, **_COMMON, **_NO_DROPOUT, n_inner=100, initializer_range=0.15),
    "gpt_neox": partial(transformers.GPTNeoXConfig, **_COMMON, intermediate_size=100, initializer_range=0.15),
    "opt": partial(
        transformers.OPTConfig, **_COMMON, ffn_dim=100, init_std=0.15, dropout=0.0, tie_word_embeddings=True
    ),
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """Return a family's tiny configuration, with changes."""
    return _CONFIGS[family](**changes)


def tiny_module(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random model of a family in evaluation mode: same seed, same bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = transformers.AutoModelForCausalLM.from_config(tiny_config(family, **changes))
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval()


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {family: partial(tiny_module, family) for family in _CONFIGS}


def tiny(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    """Return a tiny random model of a family with its tokenizer."""
    module = tiny_module(family, seed, **changes)
    # Parameters only: `module.to` would also round the rotary frequencies, which a loaded model keeps in float32.
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return as_model(module, tiny_tokenizer())
