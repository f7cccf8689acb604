"""Packed batches: one flat run of tokens with document boundaries; no padding, no leakage.

Legend: T packed tokens, N supervised tokens, L labels, B documents (sequences) in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from temper.data.example import Example, Origin
from temper.data.example import Sequence as Tokens


@dataclass(frozen=True)
class Batch:
    """A flat run of documents, as the forward primitive reads it."""

    tokens_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64, starting at 0 in each document"""
    lengths: tuple[int, ...]
    """tokens of each of the B documents, in order; their sum is T"""
    supervised_N: Tensor
    """int64 flat positions whose next token is supervised"""
    targets_N: Tensor
    """int64, the token to predict at each of those positions"""
    weights_N: Tensor
    """float32 loss weights, never 0"""
    document_N: Tensor
    """int64 in [0, B), the document of each supervised token"""
    roles: tuple[str, ...]
    """B, `Sequence.role`"""
    examples: tuple[int, ...]
    """B, which of this batch's examples each document belongs to; an example is never divided"""
    columns: tuple[Mapping[str, Any], ...]
    """one for each example"""
    origins: tuple[Origin, ...]
    """one for each example"""
    labels_L: Tensor | None = None
    """int64, the labels of tokens or documents; None where no sequence has labels"""
    labelled_L: Tensor | None = None
    """int64 flat position of each"""
    labelled_document_L: Tensor | None = None
    """int64 in [0, B), the document of each"""

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def num_examples(self) -> int:
        return len(self.columns)

    @property
    def num_tokens(self) -> int:
        return int(self.tokens_T.shape[0])

    @property
    def num_supervised(self) -> int:
        return int(self.targets_N.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on a device."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return Batch(**{**vars(self), **moved})


def pack(examples: Sequence[Example]) -> Batch:
    """Lay examples one after another.

    Raises:
        ValueError: no example at all.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    sequences = [(index, sequence) for index, example in enumerate(examples) for sequence in example.sequences]
    lengths = [len(sequence.tokens_T) for _, sequence in sequences]
    tokens_T = np.concatenate([sequence.tokens_T for _, sequence in sequences]).astype(np.int64)
    weights_T = np.concatenate([sequence.weights_T for _, sequence in sequences])
    starts_T = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    # The first token of a document has weight 0, so `predicted - 1` never reaches into the one before.
    predicted_N = np.flatnonzero(weights_T)
    return Batch(
        tokens_T=torch.from_numpy(tokens_T),
        positions_T=torch.from_numpy(np.arange(len(tokens_T)) - starts_T),
        lengths=tuple(lengths),
        supervised_N=torch.from_numpy(predicted_N - 1),
        targets_N=torch.from_numpy(tokens_T[predicted_N]),
        weights_N=torch.from_numpy(weights_T[predicted_N].astype(np.float32)),
        document_N=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[predicted_N]),
        roles=tuple(sequence.role for _, sequence in sequences),
        examples=tuple(index for index, _ in sequences),
        columns=tuple(example.columns for example in examples),
        origins=tuple(example.origin for example in examples),
        **_labels([sequence for _, sequence in sequences], lengths),
    )


def divide_by_cost(examples: Sequence[Example], num_parts: int) -> list[list[Example]]:
    """Divide a step's examples among processes so that the heaviest part is light: the longest first, each to the
    part with the fewest tokens so far. Examples keep their order inside a part, and a part may be empty.
    """
    order = sorted(range(len(examples)), key=lambda index: (-examples[index].num_tokens, index))
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for index in order:
        lightest = min(range(num_parts), key=loads.__getitem__)
        parts[lightest].append(index)
        loads[lightest] += examples[index].num_tokens
    return [[examples[index] for index in sorted(members)] for members in parts]


def _labels(sequences: Sequence[Tokens], lengths: Sequence[int]) -> dict[str, Tensor]:
    if all(sequence.labels_T is None for sequence in sequences):
        return {}
    labels = [
        np.full(len(sequence.tokens_T), -1) if sequence.labels_T is None else sequence.labels_T
        for sequence in sequences
    ]
    labels_T = np.concatenate(labels).astype(np.int64)
    labelled_L = np.flatnonzero(labels_T >= 0)
    return {
        "labels_L": torch.from_numpy(labels_T[labelled_L]),
        "labelled_L": torch.from_numpy(labelled_L),
        "labelled_document_L": torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[labelled_L]),
    }


def split_by_cost(examples: Sequence[Example], micro_tokens: int, prompt_length: int = 0) -> list[list[Example]]:
    """Divide a step's examples into as few micro-batches of at most `micro_tokens` as first-fit-decreasing finds.

    An example longer than that is a micro-batch of its own. Examples keep their order inside a micro-batch.

    Args:
        prompt_length: places that a model's soft prompts take before every document, which count as tokens.
    """
    sizes = [example.num_tokens + prompt_length * len(example.sequences) for example in examples]
    order = sorted(range(len(examples)), key=lambda index: (-sizes[index], index))
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        size = sizes[index]
        place = next((number for number, left in enumerate(room) if left >= size), None)
        if place is None:
            bins.append([index])
            room.append(micro_tokens - size)
        else:
            bins[place].append(index)
            room[place] -= size
    return [[examples[index] for index in sorted(members)] for members in sorted(bins, key=min)]
