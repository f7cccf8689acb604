"""Gradients of the matrices over the vocabulary, added up where they lie: the same sums, with nothing whole between."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from families import FAMILIES, VOCABULARY, tiny
from temper.core.schedule import Moment
from temper.data.pack import Batch, pack
from temper.models import pages
from temper.models import sums as sums_module
from temper.models.model import Model
from temper.models.sums import Sums, multiple
from temper.objectives.base import Loss
from temper.objectives.sft import TokenLoss
from temper.signals import head
from training import examples, make_loop, trained

PASSES = [pack(examples(lengths, seed)) for seed, lengths in enumerate([(1, 5, 40), (9, 33, 64, 2), (7,)])]
UNITS = 3.0


def gradients(model: Model, sums: Sums | None) -> dict[str, Tensor]:
    """Return the gradients of several passes' loss, each divided by what a step is divided by."""
    target, moment = TokenLoss(model), Moment(0, 0.0)
    for batch in PASSES:
        with nullcontext() if sums is None else sums.of_pass(1 / UNITS):
            loss = target.loss(batch, moment)
        (loss.total / UNITS).backward()
    if sums is not None:
        sums.finish()
    return {name: one.grad for name, one in model.module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_autograd(family: str, with_head: bool) -> None:
    expected = gradients(tiny(family), None)
    model = tiny(family)
    found = gradients(model, Sums(model, with_head))
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())  # a bias of keys has a gradient of 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_embedding_gives_is_found_by_trying(family: str) -> None:
    model = tiny(family)
    embedding: Any = model.module.get_submodule(model.anatomy.embedding)
    tokens = torch.arange(VOCABULARY)
    times = multiple(embedding)
    assert times is not None
    torch.testing.assert_close(embedding(tokens), times * embedding.weight)
    assert times == pytest.approx(48**0.5 if family.startswith("gemma") else 1.0)
    handle = embedding.register_forward_hook(lambda module, inputs, output: output + 1)
    assert multiple(embedding) is None
    handle.remove()


def test_the_row_of_padding_does_not_train() -> None:
    for with_sums in (False, True):
        model = tiny("llama")
        embedding: Any = model.module.get_submodule(model.anatomy.embedding)
        embedding.padding_idx = int(PASSES[0].tokens_T[3])
        found = gradients(model, Sums(model, True) if with_sums else None)[f"{model.anatomy.embedding}.weight"]
        assert not found[embedding.padding_idx].any() and found.any()


class _Made(TorchDispatchMode):
    """Counts the tensors of a shape that operations make."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.storages = shape, dict[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, Tensor) and one.shape == self.shape:
                self.storages[one.untyped_storage().data_ptr()] = one  # kept, so that no address comes twice
        return out


@pytest.mark.parametrize("with_sums", [True, False])
def test_no_pass_makes_a_gradient_of_a_weights_size(with_sums: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "PRODUCT_VALUES", 20 * 48)  # of a piece of the sum, which is made in any case
    model = tiny("llama")
    weights = [model.module.get_submodule(path).weight for path in (model.anatomy.embedding, model.anatomy.head)]
    sums = Sums(model, True) if with_sums else None
    gradients(model, sums)
    known = {one.untyped_storage().data_ptr() for weight in weights for one in (weight, weight.grad)}
    with _Made(tuple(weights[0].shape)) as made:
        gradients(model, sums)
    assert (not made.storages.keys() - known) == with_sums


def test_rows_are_brought_in_before_they_are_more_than_the_words() -> None:
    model = tiny("llama")
    sums = Sums(model, True)
    target = TokenLoss(model)
    weight = model.module.get_submodule(model.anatomy.embedding).weight
    kept = []
    for _ in range(4):  # 46 tokens of 97 words
        with sums.of_pass(1.0):
            loss = target.loss(PASSES[0], Moment(0, 0.0))
        loss.total.backward()
        kept.append(sum(len(tokens_T) for tokens_T, _ in sums._rows))
    assert kept == [46, 92, 0, 46] and weight.grad is not None
    sums.finish()
    expected = tiny("llama")
    (4 * TokenLoss(expected).loss(PASSES[0], Moment(0, 0.0)).total).backward()
    other = expected.module.get_submodule(expected.anatomy.embedding).weight.grad
    torch.testing.assert_close(weight.grad, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_large", [True, False])
def test_holes_are_given_back_before_a_large_gradient(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[bool] = []
    model = tiny("llama")
    weight = model.module.get_submodule(model.anatomy.embedding).weight
    monkeypatch.setattr(pages, "LARGE_BYTES", weight.nbytes + (not is_large))
    monkeypatch.setattr(pages, "has_large_pages", lambda: True)
    monkeypatch.setattr(sums_module, "give_back", lambda: times.append(weight.grad is None))
    gradients(model, Sums(model, False))
    assert times == ([True] if is_large else [])


def test_the_sums_have_the_same_bits_every_time() -> None:
    """Some hundred thousand numbers for a few words, on several threads."""
    model = tiny("llama")
    embedding: Any = model.module.get_submodule(model.anatomy.embedding)
    sums, threads = Sums(model, True), torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (4000,), generator=generator)  # 0 is padding
    rows = torch.randn(4000, 48, generator=generator)
    found = []
    torch.set_num_threads(4)
    try:
        for _ in range(10):
            embedding.weight.grad = None
            sums.keep(tokens[:50], rows[:50])
            sums.keep(tokens[50:], rows[50:])
            sums.finish()
            found.append(embedding.weight.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)
    expected = torch.zeros(VOCABULARY, 48, dtype=torch.float64).index_add(0, tokens, rows.double())
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-4)


class _Half(TokenLoss):
    """Says of half a sum that it was the sum."""

    def loss(self, batch: Batch, moment: Moment) -> Loss:
        whole = super().loss(batch, moment)
        return replace(whole, total=whole.total / 2)


class _HonestHalf(_Half):
    is_sum = False


def test_a_loss_that_is_another_than_the_sum_is_an_error_or_exact(tmp_path: Path) -> None:
    loop = make_loop(tmp_path / "wrong")
    loop = replace(loop, target=_Half(loop.model))
    with pytest.raises(RuntimeError, match=r"is not the tensor that `summed_logprobs` gave it.*is_sum must be False"):
        loop.run()
    # Adam's step is one of the gradient's direction: half of every gradient is the same step.
    loop = make_loop(tmp_path / "half", clip=None)
    half = trained(replace(loop, target=_HonestHalf(loop.model)))
    for name, value in trained(make_loop(tmp_path / "whole", clip=None)).items():
        torch.testing.assert_close(half[name], value, atol=2e-4, rtol=1e-3)
