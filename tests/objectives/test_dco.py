"""DCO against its formula, in the loss and in the gradient, where float32 would lose both."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from pathlib import Path

import pytest
import torch

from families import tiny
from objective_rows import encoded, gradients, setup_of
from processes import trained_divided
from temper.core.schedule import Moment
from temper.data.pack import pack
from temper.objectives.base import Objective
from temper.objectives.dco import log_coverage
from training import make_loop, trained

MOMENT = Moment(0, 0.0)
getcontext().prec = 120


def exact(logp: float, num: int) -> tuple[float, float]:
    """-log(1 - (1 - p)^N) and N p (1 - p)^(N-1) / (1 - (1 - p)^N), in 120 digits."""
    p = Decimal(logp).exp()
    covered = 1 - (1 - p) ** num
    return float(-covered.ln()), float(num * p * (1 - p) ** (num - 1) / covered)


@pytest.mark.parametrize("num", [2, 16, 1024])
@pytest.mark.parametrize("logp", [-1e-4, -0.05, -0.5, -0.75, -3.0, -7.0, -20.0, -59.0, -61.0, -95.0, -200.0])
def test_loss_and_gradient_are_the_formulas(logp: float, num: int) -> None:
    value = torch.tensor([logp], requires_grad=True)
    loss = -log_coverage(value, num).sum()
    loss.backward()
    expected, factor = exact(value.item(), num)
    # A few float32 functions one after another; near 1 the loss itself is (1 - p)^N, N times as sensitive to p.
    assert loss.item() == pytest.approx(expected, rel=2e-6 * num**0.5 + 2e-6, abs=1e-37)
    assert value.grad is not None
    assert -value.grad.item() == pytest.approx(factor, rel=3e-6 * num, abs=1e-30)


def test_a_certain_answer_and_an_impossible_one_have_finite_gradients() -> None:
    value = torch.tensor([0.0, -1e-9, -3e4], requires_grad=True)
    log_coverage(value, 64).sum().backward()
    assert value.grad is not None and value.grad.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("num", [1, 4, 256])
def test_it_is_the_likelihood_of_whole_answers_times_the_papers_factor(num: int) -> None:
    """Each answer's gradient is that of -log p(y|x), times the factor, with p from transformers' own forward."""
    model = tiny("llama")
    model.module.requires_grad_(True)
    objective = Objective.parse({"dco": {"tries": num}})
    made = encoded(objective, model, 5)
    target = objective.build(model, setup_of(model))
    loss = target.loss(pack(made), MOMENT)
    got = gradients(model, loss.total)
    assert objective.units(pack(made)) == len(made)

    total, weighted = 0.0, torch.zeros(())
    for example in made:
        (sequence,) = example.sequences
        tokens_T = torch.from_numpy(sequence.tokens_T).long()
        logprobs_TV = model.module(input_ids=tokens_T[None]).logits[0].log_softmax(-1)
        places = torch.from_numpy(sequence.weights_T).nonzero()[:, 0]
        logp = logprobs_TV[places - 1, tokens_T[places]].sum()
        value, factor = exact(logp.item(), num)
        total, weighted = total + value, weighted - factor * logp
    expected = gradients(model, weighted)
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert float((got[name] - value).abs().max()) < 1e-4 * scale, name


def test_confidence_is_limited() -> None:
    """Of two answers the likely one is let alone: its share of the gradient falls as N grows."""
    shares = []
    for num in (1, 4, 64):
        value = torch.tensor([math.log(0.5), math.log(0.001)], requires_grad=True)
        log_coverage(value, num).sum().backward()
        assert value.grad is not None
        shares.append(float(value.grad[0] / value.grad[1]))
    assert shares[0] == pytest.approx(1) and shares[0] > shares[1] > 0.2 > 1e-6 > shares[2]


def test_divided_among_two_processes_it_takes_the_same_steps(tmp_path: Path) -> None:
    """With AdamW's eps so large that it makes no step of a gradient's rounding."""
    settings = {"objective": "dco", "optimizer": {"adamw": {"eps": 1e-3}}, "num_steps": 6, "batch_size": 6}
    alone = trained(make_loop(tmp_path / "alone", **settings))
    found = trained_divided(tmp_path / "two", **settings)
    for name, value in alone.items():
        # Sums over processes have another order: 1e-7 of a gradient, in steps of 3e-3.
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
