"""Divergences in chunks against all logits at once; gradients too, the head's included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import VOCABULARY, tiny
from objective_rows import gradients
from temper.data.pack import Batch, pack
from temper.models.model import Model
from temper.signals.divergence import Comparison, compare, kl, mixed
from temper.signals.forward import forward
from temper.signals.reference import Frozen, Past, Reference
from temper.tune.base import Tune
from training import examples, moved


def skewed(share: float, logp_CV: Tensor, logq_CV: Tensor, targets_C: Tensor) -> Tensor:
    return kl(logp_CV, mixed(logp_CV, logq_CV, share))


def naive_skewed(share: float, logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    mixture_NV = share * logp_NV.exp() + (1 - share) * logq_NV.exp()
    return F.kl_div(mixture_NV.log(), logp_NV, reduction="none", log_target=True).sum(1)


CASES: dict[str, tuple[Comparison, Callable[[Tensor, Tensor], Tensor]]] = {
    f"share {share}": (partial(skewed, share), partial(naive_skewed, share)) for share in (0.0, 0.1, 0.9)
}


def naive_logprobs(model: Model, batch: Batch) -> Tensor:
    return forward(model, batch, lambda logits_CV, targets_C: logits_CV.log_softmax(1))


def references() -> dict[str, tuple[Model, Reference]]:
    """The model's own past, whose head differs from the model's, and another model, wider and of another family."""
    past = tiny("gemma2")
    tuning = Tune.parse("full").attach(past)
    own = Past(past, list(tuning.parameters()))
    moved(tuning)
    other = tiny("gpt2", hidden_size=64)
    other.module.requires_grad_(False)
    ours = tiny("llama")
    ours.module.requires_grad_(True)
    return {"past": (past, own), "other": (ours, Frozen(other))}


@pytest.mark.parametrize("who", ["past", "other"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("values", [1, 98, 1000, 2**23])
def test_chunks_equal_all_at_once(who: str, case: str, values: int) -> None:
    model, reference = references()[who]
    batch = pack(examples())
    chunked, naive = CASES[case]
    got_N = compare(model, reference, batch, chunked, values)
    with reference.asked() as other:
        theirs_NV = naive_logprobs(other, batch)
    expected_N = naive(naive_logprobs(model, batch), theirs_NV)
    torch.testing.assert_close(got_N, expected_N, atol=1e-5, rtol=1e-5)
    # Each token counts differently, as loss weights make it.
    weights_N = torch.linspace(0.5, 2, len(got_N))
    got, expected = gradients(model, (got_N * weights_N).sum()), gradients(model, (expected_N * weights_N).sum())
    scale = max(float(value.abs().max()) for value in expected.values())
    assert got.keys() == expected.keys() and scale > 0
    for name, value in expected.items():
        assert float((got[name] - value).abs().max()) < 1e-5 * scale, name


def test_neither_vocabulary_is_held_whole() -> None:
    model, reference = references()["other"]
    batch = pack(examples((60,) * 20))
    kept: set[tuple[int, ...]] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(tuple(t.shape)) or t, lambda t: t):
        compare(model, reference, batch, partial(skewed, 0.1), 100 * VOCABULARY)
    assert kept and all(VOCABULARY not in shape[1:] for shape in kept), kept


def test_nothing_supervised_gives_nothing() -> None:
    model, reference = references()["other"]
    batch = pack(examples((1,)))
    assert compare(model, reference, batch, partial(skewed, 0.1)).shape == (0,)
