"""Soft prompts: vectors that a model reads before the tokens of every document.

Decisions:
- A model has any number of prompts, which stand one after another, the latest next to the tokens. Whoever runs a model
  over a packed batch or lets it write goes through here, so that objectives, suites and generation know of no prompt:
  what they get back has one place for each token, as without one.
- Every document gets a copy. Laying copies and tokens out is a permutation, so that the gradient of a vector is a sum
  over the documents, with the same bits every time.

Legend: T tokens of a flat run, B documents or rows, P vectors of all prompts, S = T + B P, L tokens of a padded row,
D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from temper.core.errors import ModelError
from temper.models.model import Model


@dataclass(frozen=True)
class Prompted:
    """A flat run whose documents each begin with the prompts."""

    embedded_SD: Tensor
    positions_S: Tensor
    """int64, starting at 0 in each document"""
    lengths: tuple[int, ...]
    """of each document, its prompts included"""
    places_T: Tensor
    """int64, where each token of the run without prompts now stands"""


def prompt_lengths(model: Model, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return how many places documents of so many tokens take in a model: what its modules read."""
    return tuple(length + model.prompt_length for length in lengths)


def embed_behind_prompts(model: Model, tokens_T: Tensor, lengths: Sequence[int]) -> Prompted:
    """Embed a flat run of documents of `lengths` tokens, each behind the model's prompts.

    Raises:
        ModelError: a document for which a learned position embedding has no room left.
    """
    num, device = model.prompt_length, tokens_T.device
    if model.anatomy.positions is not None and max(lengths) > model.num_positions:
        raise ModelError(
            f"a document of {max(lengths)} tokens and {num} of soft prompts are more than the model's "
            f"{model.num_positions + num} positions; shorten the document, or take the prompts off"
        )
    embedded_TD = embed(model, tokens_T)
    prompt_PD = all_prompts(model).to(embedded_TD)
    copies_BPD = prompt_PD.expand(len(lengths), -1, -1)
    longer = prompt_lengths(model, lengths)
    starts_B = np.cumsum([0, *longer[:-1]])
    places_T = np.concatenate(
        [start + num + np.arange(length) for start, length in zip(starts_B, lengths, strict=True)]
    )
    order_S = np.empty(sum(longer), dtype=np.int64)
    order_S[(starts_B[:, None] + np.arange(num)).reshape(-1)] = np.arange(len(lengths) * num)
    order_S[places_T] = len(lengths) * num + np.arange(len(places_T))
    positions_S = np.concatenate([np.arange(length) for length in longer])
    stacked_SD = torch.cat([copies_BPD.reshape(-1, embedded_TD.shape[-1]), embedded_TD])
    return Prompted(
        stacked_SD.index_select(0, torch.from_numpy(order_S).to(device)),
        torch.from_numpy(positions_S).to(device),
        longer,
        torch.from_numpy(places_T).to(device),
    )


def embed_padded_behind_prompts(model: Model, tokens_BL: Tensor, padding_B: Tensor) -> Tensor:
    """Embed rows that are padded on the left, with the model's prompts between padding and tokens: (B, P + L, D).

    Args:
        padding_B: int64, places of padding in each row.
    """
    num, (rows, length) = model.prompt_length, tokens_BL.shape
    embedded_BLD = embed(model, tokens_BL)
    stacked_BSD = torch.cat([all_prompts(model).to(embedded_BLD).expand(rows, -1, -1), embedded_BLD], 1)
    place_S = torch.arange(num + length, device=tokens_BL.device)
    behind_BS = place_S - padding_B[:, None]
    order_BS = torch.where(behind_BS < 0, num + place_S, torch.where(behind_BS < num, behind_BS, place_S))
    return stacked_BSD.gather(1, order_BS[:, :, None].expand_as(stacked_BSD))


def embed(model: Model, tokens: Tensor) -> Tensor:
    """Return what the model's embedding gives for tokens, (..., D)."""
    summed = None if model.sums is None else model.sums.embed(tokens)
    embedded: Tensor = model.module.get_submodule(model.anatomy.embedding)(tokens) if summed is None else summed
    return embedded


def all_prompts(model: Model) -> Tensor:
    """Return a model's prompts one after another, float32 (P, D)."""
    return model.prompts[0] if len(model.prompts) == 1 else torch.cat(model.prompts)
