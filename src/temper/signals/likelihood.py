"""How likely a model finds texts: per-token log-probabilities, example by example, many tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch
from numpy.typing import NDArray

from temper.data.example import Example, Sequence
from temper.data.pack import pack, split_by_cost
from temper.models.generate import evaluation_mode
from temper.models.model import Model
from temper.signals.forward import token_logprobs

BATCH_TOKENS = 8192


def example_logprobs(
    model: Model, examples: Many[Many[Sequence]], batch_tokens: int = BATCH_TOKENS
) -> list[NDArray[np.float64]]:
    """Return the log-probability in nats of every supervised token of each example, in order.

    Args:
        examples: the sequences of each example; every one is a document of its own.
        batch_tokens: tokens of a batch at most, unless one example alone is longer.
    """
    device = model.module.get_input_embeddings().weight.device
    found: list[NDArray[np.float64]] = [np.empty(0)] * len(examples)
    numbered = [Example(tuple(sequences), {"number": number}) for number, sequences in enumerate(examples)]
    with torch.inference_mode(), evaluation_mode(model.module):
        for group in split_by_cost(numbered, batch_tokens, model.prompt_length):
            batch = pack(group).to(device)
            logprobs_N = token_logprobs(model, batch).double().cpu().numpy()
            example_N = np.asarray(batch.examples)[batch.document_N.cpu().numpy()]
            ends = np.cumsum(np.bincount(example_N, minlength=len(group)))[:-1]
            for columns, own in zip(batch.columns, np.split(logprobs_N, ends), strict=True):
                found[columns["number"]] = own
    return found
