"""What every merge method must keep, on models that a run left: whole weights and low-rank changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benches import LEARNING, NEEDS, bench_of, run_with_three
from temper.merge.base import Merge
from temper.models.model import Model

CONTRACTS: dict[str, Any] = {
    **{name: {name: NEEDS.get(name, dict(method.example))} for name, method in Merge.methods().items()},
    "ties of all entries": {"ties": {"density": 1}},
    "dare of all entries": {"dare": {"density": 1}},
    "dare with election": {"dare": {"elect": True, "normalize": True, "rescale": "l1"}},
    "breadcrumbs of all entries": {"breadcrumbs": {"density": 1, "gamma": 0}},
    "breadcrumbs with election": {"breadcrumbs": {"elect": True, "normalize": True}},
    "normalized mean": {"linear": {"weights": [2, 2, 2], "normalize": True}},
    "learned soup by tensor": {"learned_soup": {**LEARNING, "per": "tensor"}},
    "atlas of three parts": {"atlas": {**LEARNING, "partitions": 3}},
    "negated task": {"task_arithmetic": {"weights": [1, -0.5, 0.25], "scale": 0.5}},
}
"""every registered method as it comes, and settings worth a look"""


def merged(folder: Path, written: Any, of: tuple[str, ...], family: str = "llama") -> dict[str, Tensor]:
    bench = bench_of(run_with_three(folder, family), of)
    method = Merge.parse(written)
    method.check(len(of))
    bench.pour(method.build(bench).combine)
    return values(bench.model)


def values(model: Model) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_shapes_stay_and_numbers_are_finite_and_reproducible(tmp_path: Path, written: Any) -> None:
    first = merged(tmp_path / "a", written, ("whole", "lora", "other"))
    again = merged(tmp_path / "b", written, ("whole", "lora", "other"))
    base = values(run_with_three(tmp_path / "c").load("base"))
    assert first.keys() == base.keys()
    for name, value in first.items():
        assert value.shape == base[name].shape and torch.isfinite(value).all(), name
        assert torch.equal(value, again[name]), name
    assert any(not torch.equal(first[name], base[name]) for name in base), "something has changed"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("of", ["whole", "lora"])
@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_one_model_comes_back_where_the_method_says_so(tmp_path: Path, written: Any, of: str, family: str) -> None:
    method = Merge.parse(written)
    if len(getattr(method, "weights", None) or [1]) > 1:
        method = method.model_copy(update={"weights": None})
    own = values(run_with_three(tmp_path / "own", family).load(of))
    alone = merged(tmp_path / "run", method, (of,), family)
    # base + (model - base), each rounded once: a few float32 ulps of values up to about 5.
    is_back = all(torch.allclose(alone[name], own[name], atol=2e-6, rtol=1e-6) for name in own)
    assert is_back == method.keeps_one_model


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_order_makes_no_difference_where_the_method_says_so(tmp_path: Path, written: Any) -> None:
    forth = merged(tmp_path / "a", written, ("whole", "lora", "other"))
    back = merged(tmp_path / "b", written, ("other", "whole", "lora"))
    is_same = all(torch.allclose(forth[name], back[name], atol=2e-6, rtol=1e-6) for name in forth)
    assert is_same or not Merge.parse(written).is_symmetric


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_what_no_model_changed_is_the_base_bit_for_bit(tmp_path: Path, written: Any) -> None:
    run = run_with_three(tmp_path / "run")
    bench = bench_of(run, ("lora", "other", "third"))
    bench.pour(Merge.parse(written).build(bench).combine)
    base = values(run.load("base"))
    untouched = base.keys() - set(bench.names)
    assert untouched
    for name in untouched:
        assert torch.equal(dict(bench.model.module.named_parameters())[name], base[name]), name


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_settings_survive_being_written(written: Any) -> None:
    method = Merge.parse(written)
    assert Merge.parse(method.written()) == method
