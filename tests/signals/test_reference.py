"""A reference gives what the other model gives, and asking it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families import FAMILIES, tiny, tiny_tokenizer
from objective_rows import gradients
from temper.core.errors import SettingError
from temper.data.pack import pack
from temper.models.load import as_model
from temper.signals.forward import hidden_states, token_logprobs
from temper.signals.reference import Frozen, Past, check_same_vocabulary
from temper.signals.setup import Setup
from temper.tune.base import Tune
from training import REORDERING, examples, make_loop, moved


@pytest.mark.parametrize("tune", Tune.methods())
@pytest.mark.parametrize("family", FAMILIES)
def test_the_past_is_the_base_bit_for_bit(family: str, tune: str) -> None:
    model, batch = tiny(family), pack(examples())
    base_N, base_ND = token_logprobs(model, batch), hidden_states(model, batch).index_select(0, batch.supervised_N)
    tuning = Tune.parse(tune).attach(model)
    past = Setup(list(tuning.parameters())).reference(model)
    moved(tuning)
    now_N = token_logprobs(model, batch)
    for found, base in ((past.token_logprobs(batch), base_N), (past.supervised_hidden(batch), base_ND)):
        if tune in REORDERING:
            torch.testing.assert_close(found, base, atol=2e-5, rtol=1e-5)
        else:
            assert torch.equal(found, base)
    assert torch.equal(token_logprobs(model, batch), now_N) and not torch.equal(now_N, base_N)


@pytest.mark.parametrize(
    "tune",
    [
        {"lisa": {"blocks": 1, "every_steps": 1}},
        {"lift": {"density": 0.05, "rank": 2, "every_steps": 1}},
        {"spiel": {"every_steps": 2, "gather_steps": 1}},
        {"lofit": {"share": 0.5}},
    ],
    ids=lambda written: next(iter(written)),
)
def test_the_start_is_the_base_though_other_numbers_train_by_now(tmp_path: Path, tune: dict[str, object]) -> None:
    """What moved and rests now, or lies where nothing trains any more, is put aside as well, and comes back."""
    model, batch = tiny("llama", num_hidden_layers=3), pack(examples())
    base_N = token_logprobs(model, batch)
    loop = make_loop(tmp_path, model, tune=tune, lr=1e-2)
    tuning = loop.tuning
    past = Setup(list(tuning.movable()), at_start=tuning.at_start).reference(model)
    loop.run()
    now_N = token_logprobs(model, batch)
    assert torch.equal(past.token_logprobs(batch), base_N)
    assert torch.equal(token_logprobs(model, batch), now_N)
    assert not torch.equal(now_N, base_N)


@pytest.mark.parametrize("tune", ["lift", "spiel"])
@pytest.mark.parametrize("settings", [{"retain": ("ewc",)}, {"objective": "ps_kd"}])
def test_what_remembers_numbers_by_their_places_refuses_a_tuner_that_moves_them(
    tmp_path: Path, settings: dict[str, object], tune: str
) -> None:
    with pytest.raises(SettingError, match="remembers numbers by their places, and this stage's tuner moves them"):
        make_loop(tmp_path, tune=tune, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_asking_the_past_leaves_gradients_alone(dtype: torch.dtype) -> None:
    """Also under autocast, which remembers the lowered weights of a forward pass for the next."""
    model, batch = tiny("llama"), pack(examples())
    tuning = Tune.parse("full").attach(model)
    past = Past(model, list(tuning.parameters()))
    moved(tuning)
    model.module.train()
    found = []
    for asks in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            if asks:
                past.token_logprobs(batch)
            loss = token_logprobs(model, batch).sum()
            if asks:
                past.token_logprobs(batch)
        found.append(gradients(model, loss))
    assert model.module.training and all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_a_refreshed_past_is_kept_in_a_checkpoint() -> None:
    model, batch = tiny("llama"), pack(examples())
    tuning = Tune.parse({"lora": {"rank": 2}}).attach(model)
    past = Past(model, list(tuning.parameters()))
    moved(tuning)
    now_N = token_logprobs(model, batch)
    past.refresh()
    other = Past(model, list(tuning.parameters()))
    moved(tuning)
    other.load_state_dict(past.state_dict())
    assert torch.equal(other.token_logprobs(batch), now_N)
    held = sum(value.numel() for value in past.values)
    assert held < 0.1 * sum(parameter.numel() for parameter in model.module.parameters()), "no copy of the model"


def test_another_model_is_asked_without_gradients() -> None:
    other, batch = tiny("gpt2", seed=4), pack(examples())
    expected_N = token_logprobs(other, batch)
    frozen = Setup(load=lambda name: {"teacher": other}[name]).reference(tiny("llama"), "teacher")
    assert isinstance(frozen, Frozen)
    got_N = frozen.token_logprobs(batch)
    assert torch.equal(got_N, expected_N) and not got_N.requires_grad


def test_models_of_other_vocabularies_are_refused() -> None:
    model = tiny("llama")
    check_same_vocabulary(model, tiny("gpt2"), "teacher", "big")
    small = tiny("llama", vocab_size=90)
    small = as_model(small.module, tiny_tokenizer(90))
    with pytest.raises(SettingError, match=r"teacher: 'big' has another vocabulary \(90 logits and 97 here"):
        check_same_vocabulary(model, small, "teacher", "big")
