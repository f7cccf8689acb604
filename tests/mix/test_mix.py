"""Mixtures: weights by the papers' formulas, sources drawn in exactly that proportion, and resumed bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from families import tiny
from temper.core.errors import SettingError
from temper.data.rows import Rows
from temper.data.stream import Budget, EncodedRows, MixedStream, ShuffledStream, Steps
from temper.engine.fit import fit
from temper.engine.settings import FitSettings
from temper.mix.base import Mix, Sources
from temper.mix.fixed import Fixed
from training import examples, rows_of

SIZES = (10, 200, 3000)


def weights(mix: object, sizes: tuple[int, ...] = SIZES) -> list[float]:
    return Mix.parse(mix).build(Sources(sizes, lambda: np.ones(len(sizes)))).weights_S.tolist()


@pytest.mark.parametrize("cap", [1, 50, 200, 10**6])
def test_capped_is_the_formula(cap: int) -> None:
    counted = [min(size, cap) for size in SIZES]
    assert weights({"capped": {"cap": cap}}) == pytest.approx([count / sum(counted) for count in counted], rel=1e-12)


@pytest.mark.parametrize(("temperature", "cap"), [(1, None), (2, None), (4, 500), (1e6, None)])
def test_temperature_is_the_formula(temperature: float, cap: int | None) -> None:
    counted = [min(size, cap or size) ** (1 / temperature) for size in SIZES]
    got = weights({"temperature": {"temperature": temperature, "cap": cap}})
    assert got == pytest.approx([count / sum(counted) for count in counted], rel=1e-12)
    if temperature == 1:
        assert got == pytest.approx([size / sum(SIZES) for size in SIZES], rel=1e-12), "proportional"
    if temperature > 1e5:
        assert got == pytest.approx([1 / 3] * 3, rel=1e-4), "equal"


def test_fixed_is_what_was_written_and_must_fit_the_sources() -> None:
    assert weights({"fixed": {"weights": [1, 0, 3]}}) == [0.25, 0, 0.75]
    with pytest.raises(SettingError, match="are 2 weights for 3 sources; give one for each"):
        weights({"fixed": {"weights": [1, 2]}})
    with pytest.raises(ValidationError, match="draws from no source"):
        Fixed.model_validate({"weights": [0, 0]})


def stream(weights_S: list[float], sizes: tuple[int, ...] = (7, 30, 11)) -> MixedStream:
    def one(number: int, size: int) -> ShuffledStream:
        rows, encode = rows_of(examples(tuple(3 + index % 9 for index in range(size)), seed=number))
        return ShuffledStream(EncodedRows(rows, encode), seed=number)

    return MixedStream([one(number, size) for number, size in enumerate(sizes)], lambda: weights_S)


@pytest.mark.parametrize("weights_S", [[0.2, 0.5, 0.3], [0.01, 0.99, 0.0], [1 / 3] * 3])
def test_at_any_moment_each_source_is_within_one_example_of_its_weight(weights_S: list[float]) -> None:
    mixed = stream(weights_S)
    for number in range(1, 400):
        mixed.next()
        drawn = np.array(mixed.place.drawn)
        assert drawn.sum() == number
        # Two sources and one draw: the one that lags furthest is never a whole example behind with three.
        assert np.abs(drawn - number * np.array(weights_S)).max() < 1 + 1e-9
    assert [count > 0 for count in mixed.place.drawn] == [weight > 0 for weight in weights_S]


def test_an_epoch_of_a_mixture_is_as_many_rows_as_all_sources_hold() -> None:
    steps = Steps(stream([0.2, 0.5, 0.3]), [], Budget(epochs=2), batch_size=5)
    made = list(steps)
    assert sum(len(step.examples) for step in made) == 2 * (7 + 30 + 11)
    assert [step.epoch for step in made] == sorted(step.epoch for step in made) and made[-1].epoch == 1


@pytest.mark.parametrize("size", [{"batch_size": 5}, {"batch_tokens": 40}])
@pytest.mark.parametrize("stop", [0, 3, 17])
def test_a_mixture_goes_on_at_the_exact_example(size: dict[str, int], stop: int) -> None:
    def steps() -> Steps:
        return Steps(stream([0.2, 0.5, 0.3]), [(stream([1.0], (9,)).streams[0], 0.25)], Budget(steps=25), **size)

    whole = list(steps())
    rest = steps()
    rest.load_state_dict(json.loads(json.dumps(whole[stop].state)))
    continued = [*whole[: stop + 1], *rest]
    assert [[e.origin for e in step.examples] for step in continued] == [[e.origin for e in s.examples] for s in whole]


def letters(letter: str, num: int) -> Rows:
    records = [{"prompt": str(number), "completion": letter * 3} for number in range(num)]
    return Rows.from_list(records, "completion", letter, letter)


SOURCES = [("a", 40), ("b", 30)]
CONTRACTS = {name: {name: dict(method.example)} for name, method in Mix.methods().items()}


def train(folder: Path, mix: object, **more: Any) -> Any:
    settings = {"tune": "full", "lr": 1e-3, "steps": 12, "batch_size": 4, "checkpoint_steps": 5, **more}
    parts = [letters(*source) for source in SOURCES]
    on_step = settings.pop("on_step", None)
    validated = FitSettings.model_validate({**settings, "mix": mix})
    return fit(tiny("llama", num_hidden_layers=1), parts, validated, folder=folder, on_step=on_step)


def numbers(fitted: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in fitted.tuning.parameters()}


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_resumed_mixture_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, name: str) -> None:
    class Stopped(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 8:
            raise Stopped

    whole = train(tmp_path / "whole", CONTRACTS[name])
    with pytest.raises(Stopped):
        train(tmp_path / "cut", CONTRACTS[name], on_step=stop)
    continued = train(tmp_path / "cut", CONTRACTS[name])
    expected, got = numbers(whole), numbers(continued)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert continued.details["mixture"] == whole.details["mixture"]


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_report_says_what_was_drawn(tmp_path: Path, name: str) -> None:
    fitted = train(tmp_path, CONTRACTS[name], validation={"share": 0.1})
    report = fitted.details["mixture"]
    held_out = 7 + len(SOURCES) * Mix.parse(CONTRACTS[name]).num_held_out
    assert sum(part["rows"] for part in report) == 70 - held_out and fitted.details["held_out"] == held_out
    assert sum(part["drawn"] for part in report) == 48
    assert sum(part["weight"] for part in report) == pytest.approx(1)


def test_without_a_mixture_several_sources_are_one_shuffled_whole(tmp_path: Path) -> None:
    parts = [letters(*source) for source in SOURCES]
    settings = FitSettings.model_validate({"tune": "full", "lr": 1e-3, "steps": 6, "batch_size": 4})
    many = fit(tiny("llama"), parts, settings, folder=tmp_path / "many")
    one = fit(tiny("llama"), Rows.concatenate(parts, ""), settings, folder=tmp_path / "one")
    assert "mixture" not in many.details
    expected = numbers(one)
    assert all(torch.equal(value, expected[key]) for key, value in numbers(many).items())


def test_settings_out_of_bounds_are_refused() -> None:
    for written in ({"temperature": {"temperature": 0.5}}, {"capped": {"cap": 0}}, {"fixed": {"weights": [-1]}}):
        with pytest.raises((ValidationError, ValueError)):
            FitSettings.model_validate({"mix": written})


def test_a_mixture_of_one_source_is_told(tmp_path: Path) -> None:
    settings = FitSettings.model_validate({"tune": "full", "steps": 2, "batch_size": 4, "mix": "temperature"})
    said = [
        [line for line in fit(tiny("llama"), parts, settings, folder=tmp_path / name).warnings if "train.mix" in line]
        for name, parts in (("one", [letters(*SOURCES[0])]), ("many", [letters(*source) for source in SOURCES]))
    ]
    assert [len(lines) for lines in said] == [1, 0] and "one source, so nothing was mixed" in said[0][0]
