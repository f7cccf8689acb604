"""Counted operations against those that torch counts, and memory against what is held."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, tiny
from temper.core.schedule import Moment
from temper.data.pack import pack
from temper.engine.cost import FlopCounter, peak_memory_bytes, reset_peak_memory
from temper.objectives.base import Objective
from temper.signals.setup import Setup
from temper.tune.base import Tune
from training import examples


@pytest.mark.parametrize("tune", ["full", {"lora": {"rank": 1}}], ids=str)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_operations_are_counted_as_torch_counts_them(family: str, tune: object) -> None:
    model = tiny(family)
    Tune.parse(tune).attach(model)
    batch = pack(examples((30, 41, 12)))
    target = Objective.parse("sft").build(model, Setup())
    with FlopCounterMode(display=False) as counter:
        target.loss(batch, Moment(0, 0.0)).total.backward()
    counted = FlopCounter(model).count(batch)
    # Torch also counts the adapters' own products and takes attention as not causal; and it sees that below the first
    # adapter nothing needs a gradient, which is much of a model of two blocks (a quarter where blocks are parallel).
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.25)


def test_peak_memory_sees_an_allocation() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    held = torch.ones(64, 2**20)
    after = peak_memory_bytes(device)
    assert after - before > 0.9 * held.numel() * 4
