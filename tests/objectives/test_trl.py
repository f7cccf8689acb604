"""Preference objectives against TRL's own trainers: same model, same rows, same loss; tokenisation included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from families import tiny, tiny_module, tiny_tokenizer
from objective_rows import content, setup_of
from temper.core.schedule import Moment
from temper.data.encode import Encoder
from temper.data.example import Example, Format, Origin, Row
from temper.data.pack import Batch, pack
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.objectives.kto import _hash, _parts
from temper.signals.forward import document_sums, token_logprobs
from training import moved_slightly

NUM = 6


def contents(format: Format) -> list[dict[str, Any]]:
    generator = np.random.default_rng(5)
    return [content(format, generator) for _ in range(NUM)]


def reference_model() -> Model:
    """What the model that trains was before; it then becomes the tiny model, which is more sure of any answer."""
    model = tiny("llama")
    moved_slightly(model)
    return model


def become_policy(model: Model) -> None:
    model.module.load_state_dict(tiny_module("llama").state_dict())


def pairs() -> tuple[Model, Batch]:
    """The reference model, and a batch of preferences."""
    model = reference_model()
    return model, batch_of(model, "preference", contents("preference"))


def batch_of(model: Model, format: Format, rows: list[dict[str, Any]]) -> Batch:
    objective = Objective.parse({"preference": "dpo", "label": "kto"}[format])
    encoder = Encoder.of(model, 128)
    made = [Row(format, written, {}, Origin("made", 1)) for written in rows]
    return pack([Example(sequences) for row in made for sequences in objective.encode(row, encoder)])


def our_loss(name: object, model: Model, batch: Batch) -> float:
    objective = Objective.parse(name)
    target = objective.build(model, setup_of(model))
    become_policy(model)
    target.before_batches([batch], Moment(0, 0.0))
    return float(target.loss(batch, Moment(0, 0.0)).total.detach()) / objective.units(batch)


def their_loss(trainer_class: Any, config: Any, rows: list[dict[str, Any]]) -> float:
    """The loss of the one batch that all rows make."""
    reference = Model(tiny_module("llama"), None, None, "")  # type: ignore[arg-type]
    moved_slightly(reference)
    trainer = trainer_class(
        model=tiny_module("llama"),
        ref_model=reference.module,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    (batch,) = list(trainer.get_train_dataloader())
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


def config_of(config_class: Any, folder: Path, **settings: Any) -> Any:
    return config_class(
        output_dir=str(folder),
        per_device_train_batch_size=NUM,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"dpo": {"beta": 0.3}}, {"beta": 0.3, "loss_type": "sigmoid"}),
        ({"ipo": {"tau": 0.2}}, {"beta": 0.2, "loss_type": "ipo"}),
    ],
    ids=["dpo", "ipo"],
)
def test_dpo_and_ipo(tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    model, batch = pairs()
    expected = their_loss(DPOTrainer, config_of(DPOConfig, tmp_path, **theirs), contents("preference"))
    # Float32 sums in another order.
    assert our_loss(ours, model, batch) == pytest.approx(expected, rel=1e-5)


def test_kto(tmp_path: Path) -> None:
    """TRL pairs a prompt with the answer of the row before it: rows are given to it in the order that we go through."""
    model = reference_model()
    rows = contents("label")
    batch = batch_of(model, "label", rows)
    order = sorted(range(NUM), key=lambda place: _hash(_parts(batch)[place]))
    settings = {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    config = config_of(KTOConfig, tmp_path, **settings)
    expected = their_loss(KTOTrainer, config, [rows[place] for place in order])
    control = their_loss(KTOTrainer, config, [rows[place] for place in sorted(order)])
    assert len({row["label"] for row in rows}) == 2
    ours = our_loss({"kto": settings}, model, batch)
    assert ours == pytest.approx(expected, rel=1e-5) and ours != pytest.approx(control, rel=1e-3)


def sides(model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-probabilities of the chosen and of the rejected answers, under the model that trains."""
    become_policy(model)
    with torch.no_grad():
        logprob_B = document_sums(token_logprobs(model, batch), batch)
    mean_B = logprob_B / document_sums(batch.weights_N, batch)
    return mean_B[0::2], mean_B[1::2]


def stand_in(**settings: Any) -> Any:
    """What TRL's loss functions read of their trainer."""
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, **settings)


def test_simpo() -> None:
    trainer = stand_in(loss_type="simpo", beta=2.5, simpo_gamma=0.7, label_smoothing=0.0)
    losses, *_ = CPOTrainer.cpo_loss(trainer, *sides(*pairs()))
    assert our_loss({"simpo": {"beta": 2.5, "gamma": 0.7}}, *pairs()) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_orpo() -> None:
    chosen, rejected = sides(*pairs())
    losses, *_ = ORPOTrainer.odds_ratio_loss(stand_in(beta=0.3), chosen, rejected)
    expected = float((-chosen - losses).mean())
    assert our_loss({"orpo": {"strength": 0.3}}, *pairs()) == pytest.approx(expected, rel=1e-5)


def test_cdpo() -> None:
    """TRL's label smoothing, on the ratios to the reference."""
    model, batch = pairs()
    with torch.no_grad():
        reference_B = document_sums(token_logprobs(model, batch), batch)
        become_policy(model)
        ratio_B = document_sums(token_logprobs(model, batch), batch) - reference_B
    trainer = stand_in(loss_type="sigmoid", beta=0.3, label_smoothing=0.2)
    losses, *_ = CPOTrainer.cpo_loss(trainer, ratio_B[0::2], ratio_B[1::2])
    assert our_loss({"cdpo": {"beta": 0.3, "flipped": 0.2}}, *pairs()) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_kto_s_reference_point_is_the_step_s_however_it_is_divided() -> None:
    model = reference_model()
    rows = contents("label")
    target = Objective.parse("kto").build(model, setup_of(model))
    become_policy(model)
    found = []
    for parts in ([rows], [[row] for row in rows], [rows[3:], rows[:3]]):
        target.before_batches([batch_of(model, "label", part) for part in parts], Moment(0, 0.0))
        found.append(target.reference_point)  # type: ignore[attr-defined]
    assert found[0] > 0.5 and found == pytest.approx([found[0]] * 3, rel=1e-5)
    target.before_batches([batch_of(model, "label", rows[:1])], Moment(0, 0.0))
    assert target.reference_point == 0  # type: ignore[attr-defined]
