"""Fitting a model to rows, without a recipe."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from families import tiny
from temper.core.errors import DataError, SettingError
from temper.data.example import Origin
from temper.data.rows import BadRow, Rows
from temper.engine.calibrate import resident_bytes
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.stages.base import Stage


def rows(*extra: dict, count: int = 40) -> Rows:
    records = [{"prompt": "ab" * (1 + index % 4), "completion": "cd", "task": "t"} for index in range(count)]
    return Rows.from_list([*records, *extra], "completion", "made", "made.jsonl")


LONG = {"prompt": "a" * 60, "completion": "b"}


def settings(**written: object) -> FitSettings:
    return FitSettings.model_validate({"tune": "full", "lr": 1e-2, "batch_size": 8, "max_length": 32, **written})


def test_a_few_lines_of_python_fit_a_model(tmp_path: Path) -> None:
    model = tiny("llama")
    losses: list[float] = []
    fitted = fit(model, rows(), settings(epochs=6), folder=tmp_path, on_step=lambda m: losses.append(m["loss"]))
    assert fitted.cost["steps"] == 30 and losses[-1] < 0.2 * losses[0]
    assert fitted.details["examples"] == fitted.details["rows"] == 40
    assert fitted.details["trainable_parameters"] == fitted.details["parameters"]
    fitted.tuning.save(tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_without_a_folder_nothing_is_left_behind() -> None:
    fitted = fit(tiny("llama"), rows(), settings(steps=2, tune={"lora": {"rank": 2}}))
    assert fitted.cost["steps"] == 2


def test_a_budget_of_tokens_is_reached_and_not_passed_by_an_example(tmp_path: Path) -> None:
    fitted = fit(tiny("llama"), rows(), settings(tokens=150), folder=tmp_path)
    assert 150 <= fitted.cost["tokens"] < 150 + fitted.details["longest"]
    with pytest.raises(ValidationError, match="steps and tokens are one choice"):
        settings(steps=3, tokens=150)


def test_what_loading_left_in_the_heap_is_not_held_while_training(tmp_path: Path) -> None:
    fit(tiny("llama"), rows(), settings(steps=2), folder=tmp_path / "first")  # brings what every training brings
    model = tiny("llama")
    made = [torch.ones(25_000) for _ in range(1_000)]  # 100 MB
    full = resident_bytes()
    kept = made[::10]
    del made
    fitted = fit(model, rows(), settings(steps=2), folder=tmp_path / "second")
    assert full - fitted.cost["start_memory_bytes"] > 50e6 and len(kept) == 100


def test_memory_before_the_first_step_and_time_to_attach_are_told(tmp_path: Path) -> None:
    fitted = fit(tiny("llama"), rows(), settings(steps=2), folder=tmp_path)
    assert 0 < fitted.cost["start_memory_bytes"] <= fitted.cost["peak_memory_bytes"]
    assert fitted.cost["attach_seconds"] > 0


def test_an_over_long_row_stops_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"made\.jsonl:41: .*on_bad_rows: skip"):
        fit(tiny("llama"), rows(LONG), settings(steps=1), folder=tmp_path)


def test_bad_rows_are_put_aside_with_the_reason_and_counted(tmp_path: Path) -> None:
    fitted = fit(tiny("llama"), rows(LONG), settings(steps=1), folder=tmp_path, on_bad_rows="skip")
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["file"], record["line"]) == ("made.jsonl", 41) and "32" in record["reason"]
    assert fitted.details["bad_rows"] == 1 and any("put aside" in warning for warning in fitted.warnings)


def test_truncation_is_asked_for_counted_and_said(tmp_path: Path) -> None:
    long = {"prompt": "a", "completion": "b" * 60}
    fitted = fit(tiny("llama"), rows(long), settings(steps=1, truncate=True), folder=tmp_path)
    assert fitted.details["truncated"] == 1 and fitted.details["truncated_tokens"] > 0
    assert fitted.details["longest"] == 32 and any("cut to max_length" in warning for warning in fitted.warnings)


def test_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    validation = {"share": 0.25, "every_steps": 2}
    fitted = fit(tiny("llama"), rows(), settings(epochs=1, validation=validation), folder=tmp_path)
    assert fitted.details["held_out"] == 10 and fitted.details["examples"] == 30 and fitted.cost["steps"] == 4
    assert "best_validation_loss" in fitted.details


def test_a_format_that_an_objective_does_not_take_is_named(tmp_path: Path) -> None:
    pairs = Rows.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}], "preference", "made")
    with pytest.raises(SettingError, match=r"'sft' cannot be trained on rows of format preference; it takes"):
        fit(tiny("llama"), pairs, settings(steps=1), folder=tmp_path)


def test_budgets_that_exclude_each_other_are_refused() -> None:
    for both in ({"epochs": 1, "steps": 1}, {"batch_tokens": 64}):
        with pytest.raises(ValidationError, match="is given beside"):
            settings(**both)


def test_a_tuner_that_looks_at_gradients_is_refused_where_there_are_none() -> None:
    said = r"optimizer: 'seeds' has no backward pass, and the tuner 'spiel' looks at gradients; take one that has"
    with pytest.raises(ValidationError, match=said):
        FitSettings(tune="spiel", optimizer="seeds")
    FitSettings(tune="lift", optimizer="seeds")


def test_the_tuners_own_rate_is_the_default(tmp_path: Path) -> None:
    for tune, expected in (("full", 1e-5), ("lora", 2e-4)):
        fitted = fit(tiny("llama"), rows(), settings(tune=tune, lr=None, steps=1), folder=tmp_path / tune)
        assert fitted.details["lr"] == expected


def test_the_same_seed_gives_the_same_bits_and_another_others(tmp_path: Path) -> None:
    def weights(seed: int, name: str) -> dict[str, torch.Tensor]:
        fitted = fit(tiny("gpt2"), rows(), settings(steps=4), folder=tmp_path / name, seed=seed)
        return {name: parameter.detach() for name, parameter in fitted.tuning.parameters()}

    one, same, other = weights(1, "a"), weights(1, "b"), weights(2, "c")
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_tensorboard_gets_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tiny("llama"), rows(), settings(steps=3, track=["tensorboard"]), folder=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def wandb_records(file: bytes) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file: 7 bytes of head, then LevelDB's log in blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(file):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", file, place + 4)
        record += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_losses(file: bytes) -> list[float]:
    from wandb.proto.wandb_internal_pb2 import Record

    losses = []
    for data in wandb_records(file):
        record = Record()
        record.ParseFromString(data)
        items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        losses += [float(items["loss"])] if "loss" in items else []
    return losses


def test_weights_and_biases_gets_every_step(tmp_path: Path) -> None:
    fit(tiny("llama"), rows(), settings(steps=3, track=[{"wandb": {"mode": "offline"}}]), folder=tmp_path)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # The package's own process writes the file, on a busy machine some time after `finish` has returned.
    deadline = time.monotonic() + 60
    while len(losses := wandb_losses(written.read_bytes())) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(logged) and len(losses) == 3


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_full_tuning_keeps_what_is_frozen_and_the_precision_of_the_base(
    tmp_path: Path, stored: torch.dtype, precision: str
) -> None:
    model = tiny("llama", dtype=stored)
    before = {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}
    tune = {"full": {"freeze": ["*embed_tokens*", "*.layers.0.*"]}}
    fitted = fit(model, rows(), settings(tune=tune, precision=precision, steps=2), folder=tmp_path)
    assert {p.dtype for _, p in fitted.tuning.parameters()} == {torch.float32}
    fitted.tuning.save(tmp_path)
    after = load_file(tmp_path / "model" / "model.safetensors")
    for name, value in before.items():
        is_frozen = "embed_tokens" in name or ".layers.0." in name
        assert after[name].dtype == stored and torch.equal(after[name], value) == is_frozen, name


def test_lora_holds_the_frozen_base_in_the_type_it_computes_in(tmp_path: Path) -> None:
    model = tiny("llama")
    fit(model, rows(), settings(tune={"lora": {"rank": 2}}, precision="bf16", steps=2), folder=tmp_path)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}


def test_bad_rows_of_held_out_and_replayed_data_are_counted_too(tmp_path: Path) -> None:
    validation, replay = {"share": 0.5}, [{"replay": {"of": "old.jsonl", "share": 0.2}}]
    old = rows(LONG, count=5)
    old.bad.append(BadRow(Origin("old.jsonl", 9), "is broken", "{"))
    fitted = fit(
        tiny("llama"),
        rows(*[LONG] * 20),
        settings(steps=2, validation=validation, retain=replay),
        folder=tmp_path,
        on_bad_rows="skip",
        open_source=lambda source: old,
    )
    assert fitted.details["bad_rows"] == 20 + 1 + 1
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 22
    assert fitted.details["held_out"] + fitted.details["examples"] == 40


def test_held_out_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"train\.validation.*none can be used"):
        fit(
            tiny("llama"),
            Rows.from_list([LONG] * 4, "completion", "made"),
            settings(steps=1, validation={"share": 0.5}),
            folder=tmp_path,
            on_bad_rows="skip",
        )


def test_a_row_longer_than_the_models_positions_is_a_bad_row(tmp_path: Path) -> None:
    long = {"prompt": "a" * 400, "completion": "b"}
    with pytest.raises(DataError, match=r"made\.jsonl:41: .*128"):
        fit(tiny("gpt2"), rows(long), settings(steps=1, max_length=2048), folder=tmp_path)


def test_answers_that_are_labelled_are_not_taught_as_good_ones(tmp_path: Path) -> None:
    labelled = Rows.from_list([{"prompt": "a", "completion": "b", "label": False}], "label", "made")
    with pytest.raises(SettingError, match="cannot be trained on rows of format label"):
        fit(tiny("llama"), labelled, settings(steps=1), folder=tmp_path)


def test_a_tuner_is_calibrated_on_the_rows_that_it_names(tmp_path: Path) -> None:
    """CorDA's split follows from its own rows, the same for the same rows, and they count as data of the stage."""

    def first(text: str, folder: str) -> torch.Tensor:
        kept = Rows.from_list([{"prompt": text, "completion": text}] * 4, "completion", "kept")
        tune = {"lora": {"rank": 2, "init": {"corda": {"of": ["kept.jsonl"]}}}}
        fitted = fit(
            tiny("llama"),
            rows(),
            settings(tune=tune, steps=1, lr=1e-9),
            folder=tmp_path / folder,
            open_source=lambda source: kept,
        )
        return next(parameter for _, parameter in fitted.tuning.parameters()).detach()

    one, same, other = first("abcd", "one"), first("abcd", "same"), first("zyxw", "other")
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-3)
    train = Stage.parse({"train": {"data": ["a.jsonl"], "tune": {"lora": {"init": {"corda": {"of": "kept.jsonl"}}}}}})
    assert [source.written()["file"]["path"] for source in train.sources()] == [["a.jsonl"], ["kept.jsonl"]]


def test_an_optimizer_of_which_nothing_came_is_told() -> None:
    """LoRA's factors have a side of 8 numbers, and the model's matrices one of 48."""

    def warned(tune: object, rank: int) -> bool:
        chosen = settings(tune=tune, optimizer={"galore": {"rank": rank}}, steps=1)
        return any("this was plain adamw" in warning for warning in fit(tiny(), rows(), chosen).warnings)

    assert warned("lora", 8) and not warned("lora", 7)
    assert warned("full", 128) and not warned("full", 8)
