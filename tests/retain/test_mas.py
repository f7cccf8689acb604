"""MAS holds each number by the slope of the logits' squared norm, whatever the labels are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.example import Example
from temper.models.model import Model
from temper.retain.base import Retain
from temper.retain.importance import Consolidation
from temper.signals.setup import Setup
from temper.tune.base import Tune
from training import examples, make_loop

BEFORE = Moment(0, 0.0)


def mas(model: Model, made: list[Example], **settings: object) -> tuple[Consolidation, Setup]:
    setup = Setup(list(Tune.parse("full").attach(model).parameters()), examples=lambda sources, count: made[:count])
    anchor = Retain.parse({"mas": settings}).build(model, setup)
    assert isinstance(anchor, Consolidation)
    return anchor, setup


def naive_omega(model: Model, made: list[Example]) -> dict[str, torch.Tensor]:
    """The authors' loop: the slope of the squared norm of the outputs, its magnitude, the mean over samples."""
    sums = {name: torch.zeros_like(weight) for name, weight in model.module.named_parameters()}
    for example in made:
        (sequence,) = example.sequences
        logits_TV = model.module(torch.from_numpy(sequence.tokens_T.astype(np.int64))[None], use_cache=False).logits[0]
        places = torch.from_numpy(np.flatnonzero(sequence.weights_T)) - 1
        model.module.zero_grad()
        torch.nn.functional.mse_loss(logits_TV[places], torch.zeros(len(places), 97), reduction="sum").div(
            len(places)
        ).backward()
        for name, weight in model.module.named_parameters():
            if weight.grad is not None:
                sums[name] += weight.grad.abs()
    model.module.zero_grad()
    return {name: total / len(made) for name, total in sums.items()}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_penalty_is_the_papers(family: str) -> None:
    model, made = tiny(family), examples((9, 12, 20, 5))
    anchor, setup = mas(model, made, strength=0.3, examples=4)
    omega = naive_omega(model, made)
    starts = {name: weight.detach().clone() for name, weight in setup.trained}
    anchor.before_step(BEFORE)
    assert all(weight.grad is None for _, weight in setup.trained)
    for (name, _), held in zip(setup.trained, anchor.state_dict()["importances"], strict=True):
        # Slopes that are float32 sums in another order; of some, the sum is a hundred times smaller than its terms.
        scale = float(omega[name].abs().max())
        torch.testing.assert_close(held, omega[name], atol=1e-4 * scale, rtol=1e-3)
    with torch.no_grad():
        for number, (_, weight) in enumerate(setup.trained):
            weight += 0.01 * (number + 1)
    anchor.before_step(BEFORE)  # measured once, where the stage began
    expected = sum(float((omega[name] * (weight - starts[name]).square()).sum()) for name, weight in setup.trained)
    penalty = anchor.penalty(BEFORE)
    assert penalty is not None and expected > 0
    assert float(penalty.detach()) == pytest.approx(0.3 * expected, rel=1e-3)


def test_labels_do_not_count() -> None:
    """The last token of a text is only ever a label: another one leaves MAS as it is, and changes EWC."""

    def measured(made: list[Example], method: str) -> list[torch.Tensor]:
        model = tiny("llama")
        setup = Setup(list(Tune.parse("full").attach(model).parameters()), examples=lambda sources, count: made)
        anchor = Retain.parse(method).build(model, setup)
        anchor.before_step(BEFORE)
        return list(anchor.state_dict()["importances"])

    made = examples((9, 12))
    relabelled = []
    for example in made:
        (sequence,) = example.sequences
        tokens_T = sequence.tokens_T.copy()
        tokens_T[-1] = 4 + (tokens_T[-1] - 3) % 90
        relabelled.append(Example((replace(sequence, tokens_T=tokens_T),)))
    for method, is_same in (("mas", True), ("ewc", False)):
        pairs = list(zip(measured(made, method), measured(relabelled, method), strict=True))
        assert all(torch.equal(one, other) for one, other in pairs) == is_same


def test_the_stronger_the_nearer(tmp_path: Path) -> None:
    ends = []
    for strength in (0.0, 0.01, 10.0):
        model = tiny("llama")
        start = {name: weight.clone() for name, weight in model.module.state_dict().items()}
        retain = ({"mas": {"strength": strength}},)
        make_loop(tmp_path / str(strength), model, retain=retain, num_steps=12, clip=None).run()
        ends.append(sum(float((w - start[name]).square().sum()) for name, w in model.module.state_dict().items()))
    assert ends[0] > ends[1] > ends[2], ends


def test_without_a_row_it_is_refused() -> None:
    with pytest.raises(SettingError, match=r"retain\.mas\.of: .* has no row that can be used; name other data"):
        mas(tiny("llama"), [])
