"""Counted operations against those that torch counts, and memory against what is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, tiny
from objective_rows import encoded
from temper.core.schedule import Moment
from temper.data.pack import pack
from temper.engine.cost import FlopCounter, peak_memory_bytes, reset_peak_memory
from temper.objectives.base import Objective
from temper.signals.setup import Setup
from temper.tune.base import Tune
from training import examples, make_loop


@pytest.mark.parametrize("tune", ["full", {"lora": {"rank": 1}}, "lift", "spiel"], ids=str)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_operations_are_counted_as_torch_counts_them(family: str, tune: object) -> None:
    model = tiny(family)
    tuning = Tune.parse(tune).attach(model)
    batch = pack(examples((30, 41, 12)))
    target = Objective.parse("sft").build(model, Setup())
    with FlopCounterMode(display=False) as counter:
        target.loss(batch, Moment(0, 0.0)).total.backward()
    counted = FlopCounter(model, num_picked_from=tuning.num_picked_from).count(batch)
    # Torch also counts the adapters' own products and takes attention as not causal; and it sees that below the first
    # adapter nothing needs a gradient, which is much of a model of two blocks (a quarter where blocks are parallel).
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.25)


STEPS: dict[str, tuple[dict[str, Any], float]] = {
    "a plain step": ({}, 1.0),
    "two evaluations, no backward pass": ({"optimizer": "seeds"}, 2 / 3),
    "a reference": ({"objective": "dpo"}, 4 / 3),
    "a reference, and answers of others": ({"objective": "kto"}, 6 / 3),
    "a reference on both sides": ({"objective": "dpo", "optimizer": "seeds"}, 4 / 3),
    "a teacher": ({"objective": {"distill": {"teacher": "base"}}}, 4 / 3),
    "a guide, and embeddings ahead": ({"objective": {"gist_embed": {"guide": "base"}}}, 5 / 3),
    "a reference and a second pass": ({"retain": ("kl_base",)}, 7 / 3),
    "experts looked at ahead": ({"tune": {"loramoe": {"num_experts": 2, "rank": 1}}, "micro_tokens": 60}, 3 / 2),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_s_operations_are_counted_as_torch_counts_them(tmp_path: Path, name: str) -> None:
    """In passes forward and backward: three times a pass forward where all train, twice where none does."""
    written, passes = STEPS[name]
    model = tiny("llama")
    objective = Objective.parse(written.get("objective", "sft"))
    loop = make_loop(tmp_path, model, made=encoded(objective, model, 8), num_steps=1, batch_size=8, **written)
    with FlopCounterMode(display=False) as counter:
        totals = loop.run()
    # As above: all but the experts, whose own products count there, lie within 0.12. The least that could be left out
    # is a reference's pass, a quarter.
    assert totals["flops"] == pytest.approx(counter.get_total_flops(), rel=0.2)
    # What is declared besides is as many passes as it should be.
    step = next(iter(make_loop(tmp_path / "again", tiny("llama"), made=encoded(objective, model, 8), num_steps=1,
                               batch_size=8, **written).steps))  # fmt: skip
    batches, _ = loop.batches(step.examples)
    alone = sum(loop.flops.count(batch) for batch in batches)
    assert totals["flops"] / alone == pytest.approx(passes, rel=0.1)


def test_peak_memory_sees_an_allocation() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    held = torch.ones(64, 2**20)
    after = peak_memory_bytes(device)
    assert after - before > 0.9 * held.numel() * 4
