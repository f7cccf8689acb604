"""Traced memory against arithmetic."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from temper.engine.heap import EDGES, VIEW
from temper.engine.trace import GRADIENTS, OPTIMIZER, WEIGHTS, Ledger, without_content

ROWS, INPUTS, OUTPUTS = 512, 256, 1024


def linear_step(ledger: Ledger) -> nn.Linear:
    """A step of y = W x with Adam on a sum of squares."""
    with without_content(), ledger:
        layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
        ledger.call(WEIGHTS, layer.parameters())
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        for _ in range(2):
            x = torch.empty(ROWS, INPUTS)
            layer(x).square().sum().backward()
            assert layer.weight.grad is not None
            ledger.call(GRADIENTS, [layer.weight.grad])
            optimizer.step()
            ledger.call(
                OPTIMIZER, [optimizer.state[layer.weight]["exp_avg"], optimizer.state[layer.weight]["exp_avg_sq"]]
            )
            del x
            optimizer.zero_grad(set_to_none=True)
    return layer


def test_a_linear_layer_holds_what_arithmetic_says() -> None:
    ledger = Ledger()
    layer = linear_step(ledger)
    gc.collect()
    memory = ledger.peak(on_cpu=False)
    weight, x, y = 4 * INPUTS * OUTPUTS, 4 * ROWS * INPUTS, 4 * ROWS * OUTPUTS
    assert layer.weight.numel() * 4 == weight
    assert memory.parts[WEIGHTS] == weight
    assert memory.parts[OPTIMIZER] == 2 * weight
    # The most is held in the second backward pass, in one expression of the square's gradient, g (2 y^1): weights,
    # their state, x, y, y^1, 2 y^1 and the product. Scalars are a few bytes.
    assert memory.bytes == pytest.approx(3 * weight + x + 4 * y, abs=256)


def test_what_is_let_go_of_is_not_held() -> None:
    ledger = Ledger()
    with without_content(), ledger:
        first = torch.empty(1000)
        second = first + 1
        del first
        third = second + 1
        assert third is not None
    assert ledger.peak(on_cpu=False).tensor_bytes == 8000


def test_a_conversion_inside_of_a_kernel_is_counted() -> None:
    ledger = Ledger()
    with without_content(), ledger:
        wide, narrow = torch.empty(1000), torch.empty(1000, dtype=torch.bfloat16)
        wide += narrow
    assert ledger.peak(on_cpu=False).tensor_bytes == 4000 + 2000 + 4000


def test_views_and_nodes_are_noted_and_go_with_what_they_belong_to() -> None:
    ledger = Ledger()
    with without_content(), ledger:
        weight = torch.empty(30, requires_grad=True)
        view = weight.detach().view(5, 6)
        product = (weight * 2).sum()  # a node each, of which the first is seen when its output is read
        assert [one.size for one in ledger.storages if one.size < 0].count(-VIEW) == 2  # the detached one, and its view
        assert [one.size for one in ledger.storages if one.size < 0].count(-EDGES) == 1
        product.backward()
        del view, product, weight
    gc.collect()
    objects = [number for number, one in enumerate(ledger.storages, 1) if one.size < 0]
    gone = {-event for event in ledger.events if event < 0}
    assert objects and gone.issuperset(objects)
    assert ledger.peak(on_cpu=False).bytes == 4 * 30 * 2 + 8  # weights, product, and scalars: no byte of theirs counts
