"""Which numbers a model computes in."""

from __future__ import annotations

import torch

from families import tiny
from temper.engine.precision import has_fast_bf16, hold_in, resolve

CPU = torch.device("cpu")


def test_auto_is_bf16_where_the_processor_has_it_and_fp32_elsewhere() -> None:
    assert resolve("auto", CPU) == (torch.bfloat16 if has_fast_bf16(CPU) else torch.float32)
    assert resolve("bf16", CPU) == torch.bfloat16 and resolve("fp32", CPU) == torch.float32


def test_parameters_are_cast_and_buffers_are_not() -> None:
    model = tiny("llama")
    hold_in(model, torch.bfloat16)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.module.buffers() if b.is_floating_point()} == {torch.float32}
