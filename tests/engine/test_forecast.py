"""What is forecast of a stage, against the stage itself."""

from __future__ import annotations

import gc
import tempfile
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from families import tiny
from objective_rows import OBJECTIVES, content
from temper.core.errors import SettingError
from temper.core.methods import Method
from temper.data.rows import Rows
from temper.engine import trace
from temper.engine.calibrate import _pass, measure_speed
from temper.engine.fit import Data, assemble, attach, fit, prepare
from temper.engine.forecast import Elsewhere, Forecast, forecast
from temper.engine.layout import Layout
from temper.engine.settings import FitSettings
from temper.engine.trace import CHECKPOINT, WEIGHTS
from temper.hold.base import Hold
from temper.models import pages
from temper.models.load import Outline, outline_model, read_outline, save_model
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.optim.base import Optim
from temper.retain.base import Retain
from temper.tune.base import Tune

# Methods that look at rows before they are attached, and read numbers of what they saw.
LOOKING: dict[str, dict[str, Any]] = {
    "eva": {"lora": {"rank": 2, "init": {"eva": {"examples": 8}}}},
    "eva without room": {"lora": {"rank": 2, "init": {"eva": {"examples": 8, "rho": 1}}}},
    "corda": {"lora": {"rank": 2, "init": {"corda": {"examples": 8}}}},
    "outlier": {"lisa": {"blocks": 1, "score": {"outlier": {"threshold": 2, "examples": 8}}}},
}


@cache
def outline() -> Outline:
    with tempfile.TemporaryDirectory() as folder:
        save_model(tiny("llama"), Path(folder))
        return read_outline(folder)


def make(name: str = "start") -> Model:
    return outline_model(outline())


def rows() -> Rows:
    records = [{"prompt": "ab" * (1 + index % 9), "completion": "cd"} for index in range(24)]
    return Rows.from_list(records, "completion", "made", "made.jsonl")


def settings(**written: Any) -> FitSettings:
    return FitSettings.model_validate({"lr": 1e-3, "batch_size": 8, "max_length": 32, "steps": 2, **written})


def prepared(chosen: FitSettings) -> Data:
    return prepare(make(), [rows()], chosen)


def planned(chosen: FitSettings, place: Elsewhere | None = None) -> Forecast:
    return forecast(make, prepared(chosen), chosen, place=place)


def every(axis: type[Method]) -> list[tuple[str, dict[str, Any]]]:
    return [(axis.axis, {name: dict(method.example)}) for name, method in axis.methods().items()]


@pytest.mark.parametrize(
    ("key", "written"),
    [
        *every(Tune),
        *every(Optim),
        *every(Hold),
        *((Objective.axis, written) for written in OBJECTIVES.values()),
        *every(Retain),
    ],
    ids=lambda value: str(value),
)
def test_every_method_can_be_planned(key: str, written: object) -> None:
    chosen = settings(**({key: written} if key != "retain" else {key: [written]}), epochs=3, steps=None)
    form = next(iter(sorted(chosen.objective.formats)))
    generator = np.random.default_rng(0)
    made = Rows.from_list([content(form, generator) for _ in range(24)], form, "made", "made.jsonl")
    found = forecast(make, prepare(make(), [made], chosen), chosen)
    assert found.why == "" and found.work is not None and found.work.steps >= 9  # replay takes room in each batch
    assert found.memory is not None and found.memory.tensor_bytes > 0


@pytest.mark.parametrize(("name", "bits"), [("nf4", 4 + 8 / 64 + 64 / (256 * 64)), ("int8", 8)])
def test_what_is_held_packed_is_planned_as_packed(name: str, bits: float) -> None:
    memory = [planned(settings(precision="bf16", **more)).memory for more in ({}, {"hold": name})]
    dense, packed = (one.parts[WEIGHTS] for one in memory if one is not None)
    parts = list(make().anatomy.parts())
    numbers = sum(part.in_features * part.out_features for part in parts)
    # The rest: int8's scales of rows; of nf4's groups of 256 scales one for each matrix, which none of these fills.
    rest = 4 * sum(part.out_features for part in parts) if name == "int8" else (256 + 8) * len(parts)
    assert 0 <= packed - (dense - numbers * (2 - bits / 8)) <= rest


@pytest.mark.parametrize("is_large", [True, False])
def test_the_allocator_is_told_where_holes_are_given_back(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(pages, "LARGE_BYTES", 1 if is_large else 2**40)
    monkeypatch.setattr(pages, "has_large_pages", lambda: True)
    monkeypatch.setattr(trace, "held_bytes", lambda events, sizes: asked.append(list(events)))
    assert planned(settings(tune="full")).memory is not None
    assert [events.count(0) for events in asked] == [2 * is_large]  # once in each of two steps


@pytest.mark.parametrize("name", LOOKING)
def test_what_looks_at_rows_first_is_planned_and_counted(name: str) -> None:
    chosen = settings(tune=LOOKING[name])
    found = planned(chosen)
    assert found.why == "" and found.memory is not None and found.work is not None
    real = fit(tiny("llama"), rows(), chosen)
    if name == "eva":  # ranks go where they explain most; what is planned leaves them where they were asked for
        assert found.trainable == pytest.approx(real.details["trainable_parameters"], rel=0.5)
    else:
        assert found.trainable == real.details["trainable_parameters"]
    assert found.work.flops == real.cost["flops"]
    # Two for each weight of a block and each token of the eight rows, and four for each pair of tokens and feature.
    blocks = [make().module.get_submodule(block.path) for block in make().anatomy.blocks]
    matrices = sum(one.numel() for block in blocks for one in block.parameters() if one.ndim == 2)
    assert found.work.flops_before >= 2.0 * matrices * 8
    assert planned(settings(tune="lora")).work.flops_before == 0  # type: ignore[union-attr]


FURTHER: dict[str, dict[str, Any]] = {
    "no backward pass": {"optimizer": "seeds"},
    "a dense gradient": {"tune": {"lift": {"density": 0.1, "rank": 4}}},
    "a reference": {"objective": {"distill": {"teacher": "start"}}},
    "its own past": {"objective": "ps_kd", "steps": 7},
    "a reference on the batch": {"retain": ["kl_base"]},
    "a reference on other rows": {"retain": [{"kl_base": {"of": "old", "examples": 3}}]},
}


@pytest.mark.parametrize("name", FURTHER)
def test_what_methods_run_besides_is_counted_in_plan_and_run(name: str) -> None:
    chosen = settings(**FURTHER[name])
    data = prepare(make(), [rows()], chosen, open_source=lambda source: rows())
    found = forecast(make, data, chosen)
    real = fit(tiny("llama"), rows(), chosen, open_source=lambda source: rows())
    assert found.work is not None and found.work.flops == real.cost["flops"], found.why


@pytest.mark.parametrize("keep", [True, False])
def test_what_frozen_blocks_give_is_planned_as_it_is_kept(keep: bool, tmp_path: Path) -> None:
    chosen = settings(
        tune={"lora": {"targets": ["1.*"], "rank": 2}}, steps=None, epochs=2.5, keep_frozen=keep, precision="bf16"
    )
    found = planned(chosen)
    assert found.work is not None and found.num_frozen == 1
    done = fit(tiny("llama"), rows(), chosen, folder=tmp_path)
    assert (found.work.steps, found.work.flops) == (done.cost["steps"], done.cost["flops"])
    lengths = [len(example.sequences[0].tokens_T) for example in prepared(chosen).draw([], 24)]
    assert found.work.kept_bytes == pytest.approx(keep * sum(lengths) * 48 * 2, rel=0.05)
    assert done.details.get("kept") == (
        {"blocks": 1, "computed_tokens": sum(set(lengths)), "read_tokens": done.cost["tokens"] - sum(set(lengths))}
        if keep
        else None
    )


def test_the_copy_for_a_checkpoint_is_planned() -> None:
    """Full tuning copies its numbers and two averages; held-out rows alone ask for a copy of the numbers."""
    without = planned(settings(tune="full", checkpoint_steps=3)).memory
    saving = planned(settings(tune="full", checkpoint_steps=2)).memory
    validating = planned(settings(tune="full", validation={"share": 0.1, "examples": 2, "every_steps": 1})).memory
    assert without is not None and saving is not None and validating is not None
    size = 4 * sum(parameter.numel() for parameter in make().module.parameters())
    assert without.parts.get(CHECKPOINT, 0) == 0 and validating.parts[CHECKPOINT] == size
    assert saving.parts[CHECKPOINT] == pytest.approx(3 * size, rel=0.01) and sum(saving.parts.values()) == saving.bytes


def test_the_rest_of_a_start_that_is_not_zero_is_held_too() -> None:
    """CorDA takes its start's own B A off beside the update: as many numbers again, in float32."""
    plain, corda = planned(settings(tune={"lora": {"rank": 2}})), planned(settings(tune=LOOKING["corda"]))
    assert plain.memory is not None and corda.memory is not None
    assert plain.trainable == corda.trainable
    assert corda.memory.tensor_bytes >= plain.memory.tensor_bytes + 4 * corda.trainable


def test_a_small_model_is_timed_with_what_looks_at_rows_first() -> None:
    chosen = settings(tune=LOOKING["corda"])
    assert measure_speed(make, chosen, prepared(chosen)).flops_per_second > 0


def test_what_is_timed_is_a_whole_step() -> None:
    model, chosen = tiny("llama"), settings(tune="full")
    loop = assemble(attach(model, chosen), prepared(chosen), chosen, Path())
    batches, units = loop.batches(next(iter(loop.steps)).examples)
    _pass(loop, batches, units)
    assert all(parameter.grad is not None for _, parameter in loop.trained)


def test_a_small_model_is_timed_without_a_backward_pass() -> None:
    chosen = settings(optimizer="seeds")
    assert measure_speed(make, chosen, prepared(chosen)).flops_per_second > 0


def test_nothing_of_the_small_model_is_held_when_it_has_been_timed() -> None:
    """What the process holds then counts as the process' own."""
    chosen = settings()
    data, made = prepared(chosen), []

    def watched() -> Model:
        model = make()
        made.extend(weakref.ref(parameter) for parameter in model.module.parameters())
        return model

    measure_speed(watched, chosen, data)
    gc.collect()
    assert made and not [one for one in made if one() is not None]


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="exceeds the smaller side"):
        planned(settings(tune={"lora": {"rank": 1000}}))


def test_adapters_lie_whole_on_every_process_and_full_tuning_is_divided() -> None:
    weights = {}
    for tune in ("lora", "full"):
        for processes in (1, 4):
            memory = planned(settings(tune=tune), Elsewhere(processes, Layout())).memory
            assert memory is not None
            weights[tune, processes] = memory.parts[WEIGHTS]
    assert weights["lora", 4] == weights["lora", 1]
    assert weights["full", 4] < 0.6 * weights["full", 1]


def test_replicas_of_a_divided_model_hold_what_their_group_divides() -> None:
    memory = {
        text: planned(settings(tune="full"), Elsewhere(8, Layout.parse(text))).memory
        for text in ("fsdp=8", "dp=2,fsdp=4", "dp=4,fsdp=2")
    }
    held = [one.parts[WEIGHTS] for one in memory.values() if one is not None]
    assert held == sorted(held) and len(set(held)) == 3


def test_tensor_parallel_for_an_adapter_is_refused() -> None:
    with pytest.raises(SettingError, match="lora must have whole"):
        planned(settings(tune="lora"), Elsewhere(2, Layout(tp=2)))
