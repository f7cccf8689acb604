"""What is kept for the backward pass: less, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from families import FAMILIES, tiny
from temper.data.pack import pack
from temper.engine.kept import Recipe, _recipe_for, keeping_less
from temper.signals.forward import token_logprobs
from temper.signals.head import SummedLogprobs
from training import examples


@contextmanager
def counting(bytes_kept: list[int], hook: object = None) -> Iterator[None]:
    """Add up the storage that autograd keeps, as `keeping_less` would have it (or as it is)."""
    seen = {}

    def keep(tensor: Tensor) -> object:
        kept = _recipe_for(tensor) if hook else tensor
        for each in kept.of if isinstance(kept, Recipe) else (kept,):
            seen[each.untyped_storage().data_ptr()] = (each, each.untyped_storage().nbytes())
        return kept

    with saved_tensors_hooks(keep, lambda kept: kept.follow() if isinstance(kept, Recipe) else kept):
        yield
    bytes_kept.append(sum(size for _, size in seen.values()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_same_bits(family: str, dtype: torch.dtype) -> None:
    found = []
    for less in (False, True):
        model = tiny(family)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16, cache_enabled=False):
            if less:
                with keeping_less():
                    loss = token_logprobs(model, pack(examples())).sum()
            else:
                loss = token_logprobs(model, pack(examples())).sum()
        loss.backward()
        found.append([parameter.grad for parameter in model.module.parameters()])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one, other)


def test_a_gated_mlp_keeps_its_input_gate_and_up_alone() -> None:
    tokens, width, inner = 64, 32, 96
    gate, up, down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
    x_TD = torch.randn(tokens, width, requires_grad=True)
    kept: list[int] = []
    for hook in (None, True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), counting(kept, hook):
            down(F.silu(gate(x_TD)) * up(x_TD)).sum()
    plain, less = kept
    weights = 3 * width * inner * 2
    assert plain - less >= 2 * tokens * inner * 2 + weights - 3 * width * inner * 4
    activations = less - 3 * width * inner * 4  # the weights themselves, which are there anyway
    assert activations <= (2 * tokens * inner + 2 * tokens * width) * 2 + tokens * width * 4


def test_what_is_no_cheap_function_of_what_is_kept_is_kept_itself() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    for made in (x.exp(), F.silu(x)[:2], (x * 2), x.to(torch.bfloat16).relu()):
        assert _recipe_for(made) is made


@pytest.mark.parametrize("is_cast", [True, False])
def test_a_change_in_place_is_noticed(is_cast: bool) -> None:
    """Of what is made again as of what is kept as it is: PyTorch looks at neither once it is asked what to keep."""
    weight = nn.Parameter(torch.randn(4, 4))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False, enabled=is_cast), keeping_less():
        out = F.linear(torch.randn(3, 4, requires_grad=True), weight).sum()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


def test_a_second_pass_backward_through_a_summed_head_is_an_error() -> None:
    """Its gradients are multiplied in place: a second pass would multiply them again."""
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    with keeping_less():
        total, _ = SummedLogprobs.apply(hidden, weight, torch.arange(5), torch.ones(5), 1.0, 2, torch.float32)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="changed in place"):
        total.backward()


def test_what_a_recipe_is_made_of_goes_with_the_pass_that_reads_it() -> None:
    """While the loss is still held, as it is while the rest of a model is passed through."""
    gate, up, down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), keeping_less():
        x_TD = torch.randn(4, 8)
        gate_TI, up_TI = gate(x_TD), up(x_TD)
        loss = down(F.silu(gate_TI) * up_TI).sum()
    alive = [ref(one.untyped_storage()) for one in (gate_TI, up_TI)]
    del gate_TI, up_TI
    assert all(one() is not None for one in alive)
    loss.backward()
    assert not any(one() is not None for one in alive)
