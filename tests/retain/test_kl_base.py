"""KL to the base: its value by the naive formula, on the batch and on named rows, and through a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from families import tiny
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Example
from temper.data.pack import pack
from temper.data.rows import Rows
from temper.data.source import Source
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.models.model import Model
from temper.retain.base import Retain
from temper.signals.forward import forward
from temper.signals.setup import Setup
from temper.tune.base import Tune
from training import examples, moved


def all_logprobs(model: Model, made: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        return forward(model, pack(made), lambda logits_CV, targets_C: logits_CV.log_softmax(1))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("named", [False, True])
def test_value(direction: str, named: bool) -> None:
    model, made = tiny("llama"), examples((5, 9, 30, 7))
    before_NV = all_logprobs(model, made)
    tuning = Tune.parse({"lora": {"rank": 2}}).attach(model)
    source = {"of": ["old.jsonl"], "examples": 4} if named else {}
    method = Retain.parse({"kl_base": {"strength": 0.7, "direction": direction, **source}})
    setup = Setup(list(tuning.parameters()), examples=lambda sources, count: made)
    near = method.build(model, setup)
    moved(tuning)
    now_NV = all_logprobs(model, made)
    p_NV, q_NV = (before_NV, now_NV) if direction == "forward" else (now_NV, before_NV)
    expected = 0.7 * float(F.kl_div(q_NV, p_NV, reduction="none", log_target=True).sum(1).mean())
    batches = [pack(made[:1]), pack(made[1:])]
    near.before_batches(batches, Moment(0, 0.0))
    parts = [near.batch_penalty(batch, Moment(0, 0.0)) for batch in batches]
    drawn = near.penalty(Moment(0, 0.0))
    if named:
        assert parts == [None, None] and drawn is not None
        assert float(drawn) == pytest.approx(expected, rel=1e-4)
    else:
        assert drawn is None
        assert sum(float(part) for part in parts if part is not None) == pytest.approx(expected, rel=1e-4)


def rows(letter: str, count: int) -> Rows:
    records = [{"prompt": letter * (1 + index % 5), "completion": letter.upper()} for index in range(count)]
    return Rows.from_list(records, "completion", letter, letter)


def test_a_fit_stays_near_on_the_rows_that_are_named(tmp_path: Path) -> None:
    """Drift on the named rows is a fraction of what it is without, and the new rows are learnt all the same."""
    drifts, losses = [], []
    for retain in ([], [{"kl_base": {"of": "old.jsonl", "strength": 5.0}}]):
        model = tiny("llama")
        settings = FitSettings.model_validate(
            {"tune": {"lora": {"rank": 4}}, "lr": 1e-2, "steps": 40, "batch_size": 8, "retain": retain}
        )
        encoder_rows = rows("b", 12)

        def open_source(source: Source, named: Rows = encoder_rows) -> Rows:
            return named

        fitted = fit(model, rows("a", 30), settings, folder=tmp_path / str(len(retain)), open_source=open_source)
        losses.append(fitted.details["loss"])
        with torch.no_grad():
            probe = examples_of(model, encoder_rows)
            base = all_logprobs(tiny("llama"), probe)
            drifts.append(float(F.kl_div(all_logprobs(model, probe), base, reduction="none", log_target=True).sum()))
    assert drifts[1] < 0.3 * drifts[0], drifts
    assert losses[1] < 0.5, losses


def examples_of(model: Model, named: Rows) -> list[Example]:
    encoder = Encoder.of(model, 32)
    return [Example((encoder.supervised(row),)) for row in named]


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    model = tiny("llama")
    other = tiny("llama", vocab_size=120)
    with pytest.raises(SettingError, match=r"retain.kl_base.reference: 'base' has another vocabulary"):
        Retain.parse({"kl_base": {"reference": "base"}}).build(model, Setup(load=lambda name: other))
