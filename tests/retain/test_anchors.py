"""L2 to the start and EWC: the numbers that their equations give, and what they keep."""

from __future__ import annotations

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
from temper.signals.setup import Setup
from temper.tune.base import Tune
from training import examples, make_loop, moved

BEFORE = Moment(0, 0.0)


def setup_of(model: Model, made: list[Example]) -> Setup:
    tuning = Tune.parse("full").attach(model)
    return Setup(list(tuning.parameters()), examples=lambda sources, count: made[:count])


def test_l2_is_half_the_squared_distance_of_what_it_names() -> None:
    model = tiny("llama")
    setup = setup_of(model, [])
    whole, some = (
        Retain.parse({"l2_start": {"strength": 0.4, "parameters": patterns}}).build(model, setup)
        for patterns in (["*"], ["*self_attn*"])
    )
    assert whole.penalty(BEFORE) == 0
    with torch.no_grad():
        for _, weight in setup.trained:
            weight += 0.1
    counts = {name: weight.numel() for name, weight in setup.trained}
    for anchor, held in ((whole, counts), (some, {n: c for n, c in counts.items() if "self_attn" in n})):
        penalty = anchor.penalty(BEFORE)
        assert penalty is not None
        assert float(penalty.detach()) == pytest.approx(0.2 * 0.01 * sum(held.values()), rel=1e-4)


def test_l2_refuses_a_pattern_that_matches_nothing() -> None:
    model = tiny("llama")
    with pytest.raises(SettingError, match="'\\*lora\\*' matches nothing that trains"):
        Retain.parse({"l2_start": {"parameters": ["*lora*"]}}).build(model, setup_of(model, []))


def naive_fisher(model: Model, made: list[Example]) -> dict[str, torch.Tensor]:
    """Each sequence alone, through the model's own forward."""
    sums = {name: torch.zeros_like(weight) for name, weight in model.module.named_parameters()}
    for example in made:
        (sequence,) = example.sequences
        tokens_T = torch.from_numpy(sequence.tokens_T.astype(np.int64))
        logprob_TV = model.module(input_ids=tokens_T[None], use_cache=False).logits[0].log_softmax(-1)
        places = torch.from_numpy(np.flatnonzero(sequence.weights_T))
        model.module.zero_grad()
        logprob_TV[places - 1, tokens_T[places]].sum().backward()
        for name, weight in model.module.named_parameters():
            if weight.grad is not None:
                sums[name] += weight.grad.square()
    model.module.zero_grad()
    return {name: total / len(made) for name, total in sums.items()}


def test_ewc_holds_each_number_by_its_fisher_information() -> None:
    model, made = tiny("llama"), examples((9, 12, 20, 5))
    setup = setup_of(model, made)
    anchor = Retain.parse({"ewc": {"strength": 3.0, "examples": 4}}).build(model, setup)
    fisher = naive_fisher(model, made)
    starts = {name: weight.detach().clone() for name, weight in setup.trained}
    anchor.before_step(BEFORE)
    assert all(weight.grad is None for _, weight in setup.trained)
    with torch.no_grad():
        for number, (_, weight) in enumerate(setup.trained):
            weight += 0.01 * (number + 1)
    anchor.before_step(BEFORE)  # measured once, where the stage began
    expected = sum(float((fisher[name] * (weight - starts[name]).square()).sum()) for name, weight in setup.trained)
    penalty = anchor.penalty(BEFORE)
    assert penalty is not None and expected > 0
    # Squares of gradients that are float32 sums in another order.
    assert float(penalty.detach()) == pytest.approx(3.0 / 2 * expected, rel=1e-3)


def test_ewc_without_a_row_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(SettingError, match="has no row that can be used"):
        Retain.parse("ewc").build(model, setup_of(model, []))


@pytest.mark.parametrize("method", ["l2_start", "ewc", "kl_base"])
def test_the_stronger_the_nearer(tmp_path: Path, method: str) -> None:
    """The distance of what each holds falls as its strength rises; strength 0 is training without it."""
    ends = []
    for strength in (0.0, 1.0, 1000.0):
        model = tiny("llama")
        start = {name: weight.clone() for name, weight in model.module.state_dict().items()}
        loop = make_loop(
            tmp_path / str(strength), model, retain=({method: {"strength": strength}},), num_steps=12, clip=None
        )
        loop.run()
        ends.append(sum(float((w - start[name]).square().sum()) for name, w in model.module.state_dict().items()))
    free = tiny("llama")
    start = {name: weight.clone() for name, weight in free.module.state_dict().items()}
    make_loop(tmp_path / "free", free, num_steps=12, clip=None).run()
    distance = sum(float((w - start[name]).square().sum()) for name, w in free.module.state_dict().items())
    assert ends[0] == pytest.approx(distance, rel=1e-5) and ends[0] > ends[1] > ends[2], ends


def test_of_an_untrained_lora_only_b_is_held_by_ewc() -> None:
    model, made = tiny("llama"), examples((9, 12))
    tuning = Tune.parse({"lora": {"rank": 2}}).attach(model)
    setup = Setup(list(tuning.parameters()), examples=lambda sources, count: made)
    anchor = Retain.parse("ewc").build(model, setup)
    anchor.before_step(BEFORE)
    moved(tuning)
    held = dict(zip([name for name, _ in setup.trained], anchor.state_dict()["importances"], strict=True))
    assert all((float(value.sum()) > 0) == name.endswith("lora_B") for name, value in held.items())


def test_blocks_that_rest_for_now_are_held_as_well() -> None:
    """LISA draws one block of three: the others may train later, from where they are now."""
    model, made = tiny("llama", num_hidden_layers=3), examples((9, 12))
    tuning = Tune.parse({"lisa": {"blocks": 1}}).attach(model)
    setup = Setup(list(tuning.movable()), examples=lambda sources, count: made)
    anchor, fisher = (Retain.parse(method).build(model, setup) for method in ("l2_start", "ewc"))
    resting = [name for name, weight in model.module.named_parameters() if not weight.requires_grad]
    fisher.before_step(BEFORE)
    assert resting == [name for name, weight in model.module.named_parameters() if not weight.requires_grad]
    assert sum(".layers." in name for name in resting) > 2
    for name, importance in zip(dict(setup.trained), fisher.state_dict()["importances"], strict=True):
        assert name not in resting or float(importance.sum()) > 0, name
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            weight += 0.1 if name in resting else 0.0
    distance = sum(0.01 * model.module.get_parameter(name).numel() for name in resting)
    penalty = anchor.penalty(BEFORE)
    assert penalty is not None and float(penalty.detach()) == pytest.approx(1e-2 / 2 * distance, rel=1e-4)


def test_a_penalty_on_what_rests_for_now_is_told_and_has_no_gradient(tmp_path: Path) -> None:
    penalties: list[float] = []
    loop = make_loop(
        tmp_path,
        tiny("llama", num_hidden_layers=3),
        tune={"lisa": {"blocks": 1, "every_steps": 1}},
        retain=({"l2_start": {"parameters": ["*.layers.0.*"]}},),
        on_step=lambda metrics: penalties.append(metrics["penalty"]),
    )
    loop.run()
    assert penalties[0] == 0 and penalties[-1] > 0
