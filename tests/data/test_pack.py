"""Packing: nothing is lost, nothing leaks, nothing is wasted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from temper.data.example import Example
from temper.data.pack import pack, split_by_cost
from training import examples, sequence

lengths = st.lists(st.integers(1, 70), min_size=1, max_size=20)


@given(lengths)
def test_a_batch_holds_every_token_once_and_predicts_it_from_its_own_document(sizes: list[int]) -> None:
    made = examples(tuple(sizes))
    batch = pack(made)
    assert batch.num_tokens == sum(sizes)
    start = 0
    for number, example in enumerate(made):
        tokens_T = example.sequences[0].tokens_T
        stop = start + len(tokens_T)
        assert batch.tokens_T[start:stop].tolist() == tokens_T.tolist()
        assert batch.positions_T[start:stop].tolist() == list(range(len(tokens_T)))
        mine = batch.document_N == number
        places = batch.supervised_N[mine]
        assert bool(((places >= start) & (places < stop - 1)).all())
        assert torch.equal(batch.targets_N[mine], batch.tokens_T[places + 1])
        start = stop


def test_an_examples_sequences_stay_together_with_their_roles_and_columns() -> None:
    generator = np.random.default_rng(0)
    pair = Example((sequence(4, generator, "chosen"), sequence(6, generator, "rejected")), {"group": "g"})
    batch = pack([*examples((3,)), pair])
    assert batch.roles == ("response", "chosen", "rejected")
    assert batch.examples == (0, 1, 1)
    assert batch.columns[1] == {"group": "g"}


@given(lengths, st.integers(1, 100))
def test_micro_batches_hold_each_example_once_and_respect_the_limit(sizes: list[int], limit: int) -> None:
    made = examples(tuple(sizes))
    parts = split_by_cost(made, limit)
    assert sorted(id(e) for part in parts for e in part) == sorted(id(e) for e in made)
    assert all(sum(e.num_tokens for e in part) <= limit or len(part) == 1 for part in parts)


def test_micro_batches_are_few() -> None:
    sizes = np.random.default_rng(0).integers(10, 400, 500)
    parts = split_by_cost(examples(tuple(int(size) for size in sizes)), 2048)
    # Under 3 % of the room of all micro-batches but the last is left empty.
    assert int(sizes.sum()) / (2048 * (len(parts) - 1)) > 0.97


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack([])
