"""Masked thought hides response tokens as inputs, and nothing else."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from families import tiny
from objective_rows import encoded, setup_of
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.example import Example
from temper.data.pack import Batch, pack
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.objectives.masked_thought import MaskedLoss, MaskedThought
from temper.signals.forward import token_logprobs


def target_of(model: Model, **written: object) -> MaskedLoss:
    target = Objective.parse({"masked_thought": written}).build(model, setup_of(model))
    assert isinstance(target, MaskedLoss)
    return target


def made(model: Model, count: int = 200) -> list[Example]:
    return encoded(Objective.parse("masked_thought"), model, count)


def response_places(batch: Batch) -> set[int]:
    return set((batch.supervised_N + 1).tolist())


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7, 1.0])
def test_the_share_of_the_response_that_is_hidden(probability: float) -> None:
    model = tiny("llama")
    batch = pack(made(model))
    hidden = target_of(model, probability=probability).hidden(batch, Moment(3, 0.5)).tolist()
    places = response_places(batch)
    assert set(hidden) <= places and len(set(hidden)) == len(hidden), "the prompt is never hidden"
    # Five standard deviations of a binomial count.
    deviation = (probability * (1 - probability) * len(places)) ** 0.5
    assert abs(len(hidden) - probability * len(places)) <= 5 * deviation


def test_it_rises_during_the_warm_up() -> None:
    model = tiny("llama")
    batch = pack(made(model))
    target = target_of(model, probability=0.5, warmup=0.4)
    counts = [len(target.hidden(batch, Moment(1, progress))) for progress in (0.0, 0.1, 0.2, 0.4, 1.0)]
    num = len(response_places(batch))
    assert counts[0] == 0 and counts[3] == counts[4]
    assert [count / num for count in counts[1:]] == pytest.approx([0.125, 0.25, 0.5, 0.5], abs=0.05)


def test_the_loss_is_that_of_the_whole_targets_given_the_masked_inputs() -> None:
    model = tiny("llama")
    batch = pack(made(model, 9))
    target = target_of(model, probability=0.5)
    moment = Moment(2, 0.5)
    tokens_T = batch.tokens_T.clone()
    for place in target.hidden(batch, moment).tolist():
        tokens_T[place] = model.tokenizer.pad_token_id
    changed = Batch(**{**vars(batch), "tokens_T": tokens_T})
    expected, plain = (-float(token_logprobs(model, each).sum().detach()) for each in (changed, batch))
    model.module.train()
    assert float(target.loss(batch, moment).total.detach()) == pytest.approx(expected, rel=1e-6)
    model.module.eval()
    assert float(target.loss(batch, moment).total.detach()) == pytest.approx(plain, rel=1e-6)
    assert expected != pytest.approx(plain, rel=1e-3)


def test_what_is_drawn_follows_from_seed_step_and_document_alone() -> None:
    model = tiny("llama")
    examples = made(model, 9)
    target = target_of(model, probability=0.5)

    def masks(part: list[Example], step: int) -> list[torch.Tensor]:
        batch = pack(part)
        is_hidden_T = torch.zeros(batch.num_tokens, dtype=torch.bool)
        is_hidden_T[target.hidden(batch, Moment(step, 0.5))] = True
        return list(is_hidden_T.split(list(batch.lengths)))

    whole = masks(examples, 4)
    divided = masks(examples[6:], 4) + masks(examples[:6], 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, divided[3:] + divided[:3], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole, masks(examples, 5), strict=True))


def test_the_mask_is_a_token_of_the_model() -> None:
    model = tiny("llama")
    assert target_of(model).token == model.tokenizer.pad_token_id
    assert target_of(model, token="#").token == model.tokenizer.convert_tokens_to_ids("#")
    with pytest.raises(SettingError, match="'<mask>' is no token of this model"):
        target_of(model, token="<mask>")
    with pytest.raises(ValidationError, match="at least 1 character"):
        MaskedThought(token="")
    model.tokenizer.pad_token = model.tokenizer.eos_token
    with pytest.raises(SettingError, match="finds neither a mask nor a padding token"):
        target_of(model)
