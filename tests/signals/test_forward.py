"""The forward primitive against its naive reference: one document at a time, all logits at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from families import FAMILIES, VOCABULARY, tiny
from temper.data.example import Example
from temper.data.pack import pack
from temper.models.model import Model
from temper.signals import head
from temper.signals.forward import forward, project, token_logprobs
from training import examples


def naive_logprobs(model: Model, made: list[Example]) -> Tensor:
    """Each document alone, through the model's own forward, with every logit."""
    out = []
    for example in made:
        tokens_T = torch.from_numpy(example.sequences[0].tokens_T.astype(np.int64))
        logprob_TV = model.module(input_ids=tokens_T[None], use_cache=False).logits[0].float().log_softmax(-1)
        places = torch.from_numpy(np.flatnonzero(example.sequences[0].weights_T))
        out.append(logprob_TV[places - 1, tokens_T[places]])
    return torch.cat(out)


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    model.module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_one_by_one(family: str) -> None:
    model, made = tiny(family), examples()
    model.module.requires_grad_(True)
    packed_N, naive_N = token_logprobs(model, pack(made)), naive_logprobs(model, made)
    # Both are float32 sums of some hundred products in another order: a few units in the last place near 10.
    torch.testing.assert_close(packed_N, naive_N, atol=1e-5, rtol=1e-5)
    packed, naive = gradients(model, packed_N.sum()), gradients(model, naive_N.sum())
    assert packed.keys() == naive.keys()
    scale = max(float(value.abs().max()) for value in naive.values())
    for name, value in naive.items():
        # Relative to the largest gradient: some (a key's bias) are zero in exact arithmetic and noise in floats.
        assert float((packed[name] - value).abs().max()) < 1e-5 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_no_document_sees_another(family: str) -> None:
    model, made = tiny(family), examples((7, 12, 7, 50))
    before = token_logprobs(model, pack(made))
    changed = [made[0], *examples((12,), seed=9), *made[2:]]
    after = token_logprobs(model, pack(changed))
    document_N = pack(made).document_N
    assert torch.equal(before[document_N != 1], after[document_N != 1])
    assert not torch.equal(before[document_N == 1], after[document_N == 1])


def test_bf16_agrees_with_fp32_to_its_own_rounding() -> None:
    made = examples((5, 9, 33))
    exact = token_logprobs(tiny("llama"), pack(made))
    rounded = token_logprobs(tiny("llama", dtype=torch.bfloat16), pack(made))
    # bf16 keeps 8 bits; logits of size about 5 after two blocks are off by some hundredths.
    assert float((exact - rounded).detach().abs().max()) < 0.25
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize("values", [1, 97, 98, 500, 10**9])
def test_chunks_change_nothing(values: int) -> None:
    model, batch = tiny("gemma2"), pack(examples())
    model.module.requires_grad_(True)
    hidden_ND = torch.randn(batch.num_supervised, 48, requires_grad=True)
    reference = project(model, hidden_ND, batch.targets_N, max_chunk_values=10**9)
    chunked = project(model, hidden_ND, batch.targets_N, max_chunk_values=values)
    torch.testing.assert_close(chunked, reference, atol=1e-6, rtol=1e-6)
    one = torch.autograd.grad(chunked.sum(), hidden_ND)[0]
    other = torch.autograd.grad(reference.sum(), hidden_ND)[0]
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_nothing_supervised_gives_nothing_and_still_has_a_gradient() -> None:
    model = tiny("llama")
    model.module.requires_grad_(True)
    batch = pack(examples((1,)))
    out = token_logprobs(model, batch)
    assert out.shape == (0,)
    out.sum().backward()


def test_any_reduction_of_the_logits_goes_through_the_same_door() -> None:
    model, made = tiny("llama"), examples((9, 20))

    def entropy(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=logits_CV).entropy()

    entropy_N = forward(model, pack(made), entropy)
    assert entropy_N.shape == (pack(made).num_supervised,)
    assert bool((entropy_N > 0).all()) and bool((entropy_N <= np.log(97) + 1e-5).all())


def test_the_vocabulary_is_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is kept for the backward pass has a row for each token and a column for each word."""
    monkeypatch.setattr(head, "KEPT_VALUES", 1000)
    model = tiny("llama")
    model.module.requires_grad_(True)
    batch = pack(examples((60,) * 20))
    logits = (batch.num_supervised, VOCABULARY)

    def shapes_kept(whole: bool) -> set[tuple[int, ...]]:
        kept: set[tuple[int, ...]] = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(tuple(t.shape)) or t, lambda t: t):
            if whole:  # the control: a plain projection does keep them
                model.module.lm_head(torch.randn(*logits[:1], 48)).log_softmax(-1)
            else:
                token_logprobs(model, batch)
        return kept

    assert logits in shapes_kept(whole=True) and logits not in shapes_kept(whole=False)
