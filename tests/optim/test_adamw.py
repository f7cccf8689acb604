"""AdamW against its formula."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from temper.optim.adamw import AdamW


def test_it_takes_the_papers_steps() -> None:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))
    expected = [matrix.detach().clone(), vector.detach().clone()]
    lr, b1, b2, eps, decay = 0.1, 0.8, 0.9, 1e-6, 0.3
    settings = AdamW(betas=(b1, b2), eps=eps, weight_decay=decay)
    optimizer = settings.build([("matrix", matrix), ("vector", vector)], lr)
    averages = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    for step in range(1, 6):
        for index, parameter in enumerate((matrix, vector)):
            parameter.grad = torch.randn(parameter.shape)
            m, v = averages[index]
            m.mul_(b1).add_((1 - b1) * parameter.grad)
            v.mul_(b2).add_((1 - b2) * parameter.grad**2)
            expected[index] *= 1 - lr * (decay if index == 0 else 0.0)
            expected[index] -= lr * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
        optimizer.step()
        torch.testing.assert_close(matrix.data, expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vector.data, expected[1], atol=1e-5, rtol=1e-5)


def test_room_is_made_as_the_first_step_would() -> None:
    found = []
    for makes_room in (False, True):
        torch.manual_seed(0)
        parameters = [("w", nn.Parameter(torch.randn(4, 3))), ("b", nn.Parameter(torch.randn(3)))]
        method = AdamW(weight_decay=0.1)
        optimizer = method.build(parameters, 1e-2)
        if makes_room:
            method.make_room(optimizer)
            assert all(state["step"] == 0 for state in optimizer.state.values())
        for _ in range(3):
            for _, parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        found.append(([parameter for _, parameter in parameters], optimizer.state_dict()["state"]))
    (plain, state), (roomy, same) = found
    assert all(torch.equal(one, other) for one, other in zip(plain, roomy, strict=True))
    assert {key: set(own) for key, own in state.items()} == {key: set(own) for key, own in same.items()}
    for key, own in state.items():
        for name, value in own.items():
            assert value.dtype == same[key][name].dtype
            assert torch.equal(value, same[key][name])


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9)])
def test_an_average_that_never_forgets_is_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="betas"):
        AdamW(betas=betas)
