"""The layout of packed attention: a permutation that fills its rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from temper.models.attention import LEAST_FILL, SHORT_DOCUMENT, PackedLayout


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_slots_are_a_permutation_of_the_tokens_and_padding(lengths: list[int]) -> None:
    layout = PackedLayout.of(lengths)
    total = sum(lengths)
    num_slots = sum(group.num_documents * group.length for group in layout.groups)
    regrouping = layout.regrouping
    if regrouping is None:
        assert num_slots == total
        return
    assert len(regrouping.slots_S) == num_slots and int((~regrouping.is_padding_S).sum()) == total
    assert torch.equal(regrouping.slots_S[regrouping.inverse_T], torch.arange(total))
    assert not bool(regrouping.is_padding_S[regrouping.inverse_T].any())


@given(st.lists(st.integers(SHORT_DOCUMENT + 1, 3000), min_size=1, max_size=60))
def test_long_documents_fill_their_rows(lengths: list[int]) -> None:
    layout = PackedLayout.of(lengths)
    num_slots = sum(group.num_documents * group.length for group in layout.groups)
    assert sum(lengths) >= LEAST_FILL * num_slots


def test_equal_documents_and_one_document_are_not_moved() -> None:
    assert PackedLayout.of([7, 7, 7]).regrouping is None
    assert PackedLayout.of([1000]).regrouping is None
