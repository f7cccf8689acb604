"""Attention from matrix products against the naive one, forward and gradient."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from temper.models import cpu_attention
from temper.models.attention import PackedLayout
from temper.models.cpu_attention import BLOCK, Order


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None) -> Tensor:
    """One group of documents, heads before tokens, as the naive one takes them."""
    flat = (one.transpose(1, 2).flatten(0, 1) for one in (query, key, value))
    shape = (query.shape[0], query.shape[2])
    orders = Order.of([shape], query.shape[1]), Order.of([shape], key.shape[1])
    return cpu_attention.attend(*flat, [shape], orders, scale, window).unflatten(0, shape).transpose(1, 2)


def naive(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """One document and one head at a time, in float64."""
    length, per_key = query.shape[2], query.shape[1] // key.shape[1]
    place = torch.arange(length)
    hidden = place[None] > place[:, None]
    if window is not None:
        hidden |= place[None] <= place[:, None] - window
    rows = []
    for document in range(len(query)):
        heads = []
        for head in range(query.shape[1]):
            q, k, v = query[document, head], key[document, head // per_key], value[document, head // per_key]
            scores = (q.double() @ k.double().t() * scale).masked_fill(hidden, -torch.inf)
            heads.append(scores.softmax(1) @ v.double())
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, BLOCK, 400])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("documents", "length"), [(1, 1), (5, 2), (3, 63), (1, BLOCK), (2, BLOCK + 1), (1, 2 * BLOCK + 77)]
)
def test_values_and_gradients(
    documents: int,
    length: int,
    heads: int,
    key_heads: int,
    window: int | None,
    is_kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_attention, "KEPT_UP_TO", 10**9 if is_kept else 0)
    torch.manual_seed(length)
    width = 16
    made = [torch.randn(documents, count, length, width).bfloat16() for count in (heads, key_heads, key_heads)]
    upstream = torch.randn(documents, heads, length, width).bfloat16()
    leaves, exact = ([one.clone().requires_grad_() for one in made] for _ in range(2))
    out = attend(*leaves, scale=0.3, window=window)
    expected = naive(*exact, scale=0.3, window=window)
    assert out.dtype == torch.bfloat16 and out.shape == expected.shape
    found = [out, *torch.autograd.grad(out, leaves, upstream)]
    wanted = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
    for one, other in zip(found, wanted, strict=True):
        # bf16 rounds scores, weights and results to 1 in 256 each; the largest value bounds them.
        assert float((one.double() - other.double()).detach().abs().max()) <= 2**-5 * max(
            1.0, float(other.detach().abs().max())
        )


def test_a_run_of_unlike_documents_is_attended_to_one_by_one() -> None:
    # Groups of several documents with padding, one of its own length, and one of more than a block; two heads to a key.
    torch.manual_seed(0)
    lengths = [9, BLOCK + 30, 12, 40, 1, 38, 90]
    layout = PackedLayout.of(lengths)
    assert layout.regrouping is not None and bool(layout.regrouping.is_padding_S.any()) and len(layout.groups) > 2
    shapes = [(group.num_documents, group.length) for group in layout.groups]
    made = [torch.randn(sum(lengths), heads, 16).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    out = cpu_attention.attend(*made, shapes, (layout.order(4), layout.order(2)), scale=0.3)
    upstream = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, made, upstream)]
    parts = []
    for rows in zip(*(one.split(lengths) for one in made), strict=True):
        parts.append(naive(*(one.transpose(0, 1)[None] for one in rows), scale=0.3, window=None)[0].transpose(0, 1))
    expected = torch.cat(parts)
    wanted = [expected, *torch.autograd.grad(expected, made, upstream.double())]
    for one, other in zip(found, wanted, strict=True):
        assert float((one.double() - other.double()).detach().abs().max()) <= 2**-5 * max(
            1.0, float(other.detach().abs().max())
        )


def test_no_gradient_no_memory() -> None:
    with torch.no_grad():
        assert not attend(*(torch.randn(1, 2, 9, 4).bfloat16() for _ in range(3)), scale=1.0).requires_grad


@pytest.mark.parametrize(("length", "has_gradient"), [(5 * BLOCK, True), (5 * BLOCK, False), (9, False)])
def test_weights_that_are_not_kept_go_with_their_block(
    length: int, has_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a long document's would take the square of its length until the forward pass of the block is over."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    weights = cpu_attention._weights

    def watched(*args: Any) -> Tensor:
        found = weights(*args)
        made.append(weakref.ref(found))
        alive.append(sum(one() is not None for one in made))
        return found

    monkeypatch.setattr(cpu_attention, "_weights", watched)
    shapes = [(1, length)] * 3
    order = Order.of(shapes, 2)
    flat = [torch.randn(3 * length, 2, 16).bfloat16().requires_grad_(has_gradient) for _ in range(3)]
    cpu_attention.attend(*flat, shapes, (order, order), scale=0.3)
    assert alive and max(alive) <= 2  # this block's, and the last one's until its name is given away


def test_what_comes_later_changes_nothing_before_it() -> None:
    made = [torch.randn(1, 2, BLOCK + 40, 8).bfloat16() for _ in range(3)]
    before = attend(*made, scale=0.3)
    for one in made:
        one[:, :, BLOCK + 9 :] = 7
    assert torch.equal(attend(*made, scale=0.3)[:, :, : BLOCK + 9], before[:, :, : BLOCK + 9])
