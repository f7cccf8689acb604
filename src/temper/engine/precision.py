"""In which numbers a model computes.

`auto` is bf16 where the machine multiplies bf16 in hardware and fp32 elsewhere: without the instructions a bf16
product is some hundred times slower than an fp32 one. fp16 is not offered: it needs loss scaling, and on a
CPU it is slower still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch

from temper.engine.kept import keeping_less
from temper.models.model import Model
from temper.models.packed import unpack_all

Precision = Literal["auto", "fp32", "bf16"]


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type in which products are computed."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def hold_in(model: Model, dtype: torch.dtype) -> None:
    """Hold every parameter in the type that products are computed in; what trains becomes float32 when attached.

    Buffers (the frequencies of rotary positions) keep their own precision.
    """
    unpack_all(model.module)
    for parameter in model.module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Be the context in which the forward pass runs."""
    with ExitStack() as held:
        held.enter_context(keeping_less())
        if dtype != torch.float32:
            # Autocast's cache would hold a copy of each weight until the pass ends.
            held.enter_context(torch.autocast(device.type, dtype=dtype, cache_enabled=False))
        yield
