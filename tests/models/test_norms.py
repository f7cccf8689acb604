"""RMS norms as one function, against the families' own and in float64; and one cast for several projections."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from families import FAMILIES, tiny
from temper.data.pack import pack
from temper.models.norms import RMSNorm, equivalent
from temper.signals.forward import token_logprobs
from training import examples


def naive(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (offset + weight.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 33, 24), (2, 3, 5, 7)])
def test_values_and_gradients(shape: tuple[int, ...], offset: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, upstream = torch.randn(shape).to(dtype), torch.randn(shape[-1]), torch.randn(shape)
    leaves, exact = ([one.clone().requires_grad_() for one in (x, weight)] for _ in range(2))
    found = RMSNorm(nn.Parameter(leaves[1]), 1e-5, offset)
    out = found(leaves[0])
    assert out.dtype == dtype
    expected = naive(*exact, 1e-5, offset)
    ours = [out, *torch.autograd.grad((out * upstream).sum(), [leaves[0], found.weight])]
    for one, other in zip(ours, [expected, *torch.autograd.grad((expected * upstream).sum(), exact)], strict=True):
        # float32 sums of at most some thirty products; bf16 rounds the input's side to 1 in 256.
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        assert float((one.double() - other.double()).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def test_a_norm_is_replaced_only_by_one_that_computes_the_same() -> None:
    class Twice(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return 2 * super().forward(hidden_states)

    llama, gemma = equivalent(LlamaRMSNorm(8, 1e-5)), equivalent(Gemma2RMSNorm(8, 1e-6))
    assert llama is not None and (llama.eps, llama.offset) == (1e-5, 0)
    assert gemma is not None and (gemma.eps, gemma.offset) == (1e-6, 1)
    assert equivalent(Twice(8)) is None and equivalent(nn.LayerNorm(8)) is None
    norm = LlamaRMSNorm(8)
    replaced = equivalent(norm)
    assert replaced is not None and replaced.weight is norm.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cast_for_all_who_read_it_changes_no_bit_and_spares_casts(family: str) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    hooked = [module for module in plain.module.modules() if module._forward_pre_hooks]
    # OPT's MLP is no module of its own.
    assert len(hooked) == (1 if family == "opt" else 2) * len(model.anatomy.blocks)
    for module in hooked:
        module._forward_pre_hooks.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(*(token_logprobs(one, pack(examples())) for one in (model, plain)))
