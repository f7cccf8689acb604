"""Per-example gradients are those of one row alone, and their projection keeps inner products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import tiny
from temper.data.example import Sequence
from temper.signals import gradients
from temper.signals.gradients import Projection, example_gradients, projected_gradients
from training import examples

LENGTHS = (3, 9, 5)


def made() -> list[Sequence]:
    return [example.sequences[0] for example in examples(LENGTHS)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_gradient_is_that_of_the_rows_mean_loss_alone(family: str) -> None:
    model, reference = tiny(family), tiny(family)
    for parameter in (*model.module.parameters(), *reference.module.parameters()):
        parameter.requires_grad_(True)
    found = list(example_gradients(model, list(model.module.parameters()), made()))
    for sequence, gradient_P in zip(made(), found, strict=True):
        tokens_T = torch.from_numpy(sequence.tokens_T).long()
        logits_TV = reference.module(input_ids=tokens_T[None]).logits[0]
        nll_T = -torch.log_softmax(logits_TV[:-1].float(), 1).gather(1, tokens_T[1:, None])[:, 0]
        weights_T = torch.from_numpy(sequence.weights_T[1:])
        reference.module.zero_grad()
        ((nll_T * weights_T).sum() / weights_T.sum()).backward()
        expected_P = torch.cat([parameter.grad.reshape(-1) for parameter in reference.module.parameters()])
        # Gradients of up to about 10, summed in another order.
        torch.testing.assert_close(gradient_P, expected_P, atol=2e-5, rtol=1e-3)


def test_a_projection_is_one_matrix_of_signs_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    identity_PP = torch.eye(50)
    whole_PK = Projection(8, seed=3).project(identity_PP)
    assert torch.equal(whole_PK.abs(), torch.full((50, 8), 8**-0.5))
    assert not torch.equal(whole_PK, Projection(8, seed=4).project(identity_PP))
    vectors_EP = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    # float32 sums of fifty products.
    torch.testing.assert_close(Projection(8, seed=3).project(vectors_EP), vectors_EP @ whole_PK, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(gradients, "BLOCK_VALUES", 8 * 7)
    torch.testing.assert_close(Projection(8, seed=3).project(vectors_EP), vectors_EP @ whole_PK, atol=1e-5, rtol=1e-5)


def test_inner_products_are_kept_with_an_error_that_falls_as_the_root_of_the_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors_EP = torch.nn.functional.normalize(torch.randn(40, 3000, generator=generator), dim=1)
    vectors_EP[1] = torch.nn.functional.normalize(vectors_EP[0] + 0.5 * vectors_EP[1], dim=0)
    exact_EE = vectors_EP @ vectors_EP.T
    errors = {}
    for dimension in (64, 1024):
        short_EK = Projection(dimension, seed=0).project(vectors_EP)
        errors[dimension] = float((short_EK @ short_EK.T - exact_EE).square().mean().sqrt())
        # Johnson and Lindenstrauss: a standard deviation of 1/sqrt(K) for unit vectors; 20 % for 40 of them.
        assert errors[dimension] == pytest.approx(dimension**-0.5, rel=0.2)


def test_gradients_are_projected_a_few_at_a_time_and_transformed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    parameters = [parameter.requires_grad_(True) for parameter in model.module.parameters()]
    monkeypatch.setattr(gradients, "GRADIENT_VALUES", 2 * sum(parameter.numel() for parameter in parameters))
    projection = Projection(16, seed=0)
    got_EK = projected_gradients(model, parameters, made(), projection, transform=torch.sign)
    gradients_EP = torch.stack(list(example_gradients(model, parameters, made())))
    expected_EK = projection.project(gradients_EP.sign()).numpy()
    # Sums of some 50,000 signs, exact in float32 but for the order.
    np.testing.assert_allclose(got_EK, expected_EK, atol=1e-2)
    assert projected_gradients(model, parameters, [], projection).shape == (0, 16)
