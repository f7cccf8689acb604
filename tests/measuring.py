"""What tests of suites share: rows in files, and a model whose next token is known beforehand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from families import tiny_config, tiny_tokenizer
from temper.models.load import as_model
from temper.models.model import Model


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write JSONL and return its path, as a recipe names it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chain_model(chain: Sequence[str], confidence: float = 20.0) -> Model:
    """Return a model that writes each token of a chain after the one before, whatever stands further back.

    Attention and MLP are cut off, embeddings are orthogonal, and the head of a token is the embedding of the one that
    it follows.
    """
    tokenizer = tiny_tokenizer()
    config = tiny_config("llama", hidden_size=128, num_hidden_layers=1)
    module = AutoModelForCausalLM.from_config(config).eval()
    ids = [tokenizer.convert_tokens_to_ids(token) for token in chain]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        module.model.embed_tokens.weight.copy_(torch.eye(config.vocab_size, config.hidden_size))
        module.lm_head.weight.zero_()
        for before, after in itertools.pairwise(ids):
            module.lm_head.weight[after, before] = confidence / config.hidden_size**0.5
    return as_model(module, tokenizer)


def add_noise(model: Model, scale: float, seed: int = 0) -> Model:
    """Add normal noise to every matrix, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return as_model(model.module, model.tokenizer)


def is_short(prompt: str, output: str, row: Mapping[str, Any]) -> bool:
    """A metric by module and name."""
    return len(output) < 3 and row["prompt"] == prompt
