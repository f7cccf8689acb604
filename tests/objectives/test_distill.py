"""Distillation and self-distillation against TRL and the naive formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from trl.experimental.gkd import GKDTrainer

from families import tiny
from objective_rows import encoded, other_model, setup_of
from temper.core.errors import SettingError
from temper.core.schedule import Moment
from temper.data.pack import Batch, pack
from temper.data.rows import Rows
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.signals.forward import forward
from temper.signals.setup import Setup
from training import make_loop, moved_slightly


def logits(model: Model, batch: Batch) -> Tensor:
    with torch.no_grad():
        return forward(model, batch, lambda logits_CV, targets_C: logits_CV)


def loss_of(written: dict[str, object], model: Model, batch: Batch) -> float:
    objective = Objective.parse({"distill": {"teacher": "big", **written}})
    return float(objective.build(model, setup_of(model)).loss(batch, Moment(0, 0.0)).total.detach())


@pytest.mark.parametrize(("divergence", "beta"), [("forward", 0), ("reverse", 1)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_forward_and_reverse_equal_trl(divergence: str, beta: int, temperature: float) -> None:
    model = tiny("llama")
    batch = pack(encoded(Objective.parse("sft"), model))
    ours = loss_of({"divergence": divergence, "share": 1.0, "temperature": temperature}, model, batch)
    theirs = GKDTrainer.generalized_jsd_loss(
        logits(model, batch)[None],
        logits(other_model("big"), batch)[None],
        beta=beta,
        temperature=temperature,
        reduction="sum",
    )
    # TRL leaves out the square of the temperature, which keeps gradients at one size (arXiv:1503.02531, section 2).
    assert ours == pytest.approx(temperature**2 * float(theirs), rel=1e-5)


@pytest.mark.parametrize("skew", [0.1, 0.6])
def test_skewed_is_the_divergence_from_the_mixture(skew: float) -> None:
    model = tiny("llama")
    batch = pack(encoded(Objective.parse("sft"), model))
    q, p = logits(model, batch).double().softmax(1), logits(other_model("big"), batch).double().softmax(1)
    expected = {
        "skewed": (p * (p / (skew * p + (1 - skew) * q)).log()).sum(),
        "skewed_reverse": (q * (q / ((1 - skew) * p + skew * q)).log()).sum(),
    }
    for divergence, value in expected.items():
        ours = loss_of({"divergence": divergence, "skew": skew, "share": 1.0}, model, batch)
        assert ours == pytest.approx(float(value), rel=1e-5), divergence


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_data_has_the_rest_of_the_loss_and_weights_count(share: float) -> None:
    model = tiny("llama")
    batch = pack(encoded(Objective.parse("sft"), model))
    batch.weights_N.copy_(torch.linspace(0.1, 3, batch.num_supervised))
    q, p = logits(model, batch).log_softmax(1), logits(other_model("big"), batch).log_softmax(1)
    nll_N = F.nll_loss(q, batch.targets_N, reduction="none")
    kl_N = F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    expected = float((((1 - share) * nll_N + share * kl_N) * batch.weights_N).sum())
    assert loss_of({"share": share}, model, batch) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    setup = Setup(load=lambda name: tiny("llama", vocab_size=120))
    with pytest.raises(SettingError, match=r"objective.distill.teacher: 'big' has another vocabulary"):
        Objective.parse({"distill": {"teacher": "big"}}).build(tiny("llama"), setup)


def test_the_past_is_the_end_of_the_last_epoch_and_counts_more_each_epoch() -> None:
    model = tiny("llama")
    batch = pack(encoded(Objective.parse("sft"), model))
    target = Objective.parse({"ps_kd": {"alpha": 0.6}}).build(model, setup_of(model))
    num_epochs = 4
    past = logits(model, batch)
    model.module.train()
    for epoch in range(num_epochs):
        # The first step of an epoch may begin a little way into it.
        passes = epoch + 0.1 * (epoch > 0)
        moment = Moment(10 * epoch, passes / num_epochs, epoch, passes=passes)
        target.before_step(moment)
        moved_slightly(model)
        now = logits(model, batch)
        hard_NV = F.one_hot(batch.targets_N, now.shape[1]).float()
        alpha = 0.6 * (epoch + 1) / num_epochs if epoch else 0.0
        soft_NV = (1 - alpha) * hard_NV + alpha * past.softmax(1)
        expected = float(F.cross_entropy(now, soft_NV, reduction="sum"))
        assert float(target.loss(batch, moment).total.detach()) == pytest.approx(expected, rel=1e-5), epoch
        # Within an epoch the past stays.
        target.before_step(Moment(10 * epoch + 1, (passes + 0.5) / num_epochs, epoch, passes=passes + 0.5))
        assert float(target.loss(batch, moment).total.detach()) == pytest.approx(expected, rel=1e-5), epoch
        # Held-out rows are judged by what they say alone, the same in every epoch.
        hard = float(F.cross_entropy(now, batch.targets_N, reduction="sum"))
        model.module.eval()
        assert float(target.loss(batch, moment).total.detach()) == pytest.approx(hard, rel=1e-5), epoch
        model.module.train()
        past = now


def test_alpha_grows_with_the_epochs_of_a_real_run(tmp_path: Path) -> None:
    """Twenty examples, four per step: epochs begin at steps 0, 5 and 10 of 11, which are 2.2 epochs."""
    made = encoded(Objective.parse("ps_kd"), tiny("llama"))
    alphas: list[float] = []
    make_loop(
        tmp_path,
        made=made,
        objective="ps_kd",
        num_steps=11,
        on_step=lambda metrics: alphas.append(metrics.get("alpha", 0.0)),
    ).run()
    assert alphas == pytest.approx([0.0] * 5 + [0.8 * 2 / 2.2] * 5 + [0.8], rel=1e-6)


def rows(count: int) -> Rows:
    records = [{"prompt": "ab" * (1 + index % 5), "completion": "cd"} for index in range(count)]
    return Rows.from_list(records, "completion", "made", "made.jsonl")


@pytest.mark.parametrize("budget", [{"steps": 4}, {"epochs": 1.0}, {"epochs": 0.3}, {}])
def test_a_stage_that_ends_before_there_is_a_past_is_refused(budget: dict[str, object]) -> None:
    settings = FitSettings.model_validate({"objective": "ps_kd", "batch_size": 8, **budget})
    with pytest.raises(SettingError, match=r"train.objective: 'ps_kd' differs .* only after 1 epochs, and .*epochs: 2"):
        fit(tiny("llama"), rows(32), settings)
    # One that has no such needs is trained.
    assert fit(tiny("llama"), rows(8), settings.model_copy(update={"objective": Objective.parse("sft")})).cost["steps"]


def test_a_past_of_which_nothing_came_is_said_in_the_report() -> None:
    """Rows of which one may be put aside, and steps by tokens: how many epochs they come to shows at the end."""
    written = {"objective": "ps_kd", "max_length": 32, "lr": 1e-3}
    short = FitSettings.model_validate({**written, "tokens": 60, "batch_tokens": 30})
    assert any("plain sft" in text for text in fit(tiny("llama"), rows(32), short).warnings)
    enough = FitSettings.model_validate({**written, "steps": 5, "batch_size": 8})
    assert not any("plain sft" in text for text in fit(tiny("llama"), rows(32), enough).warnings)
