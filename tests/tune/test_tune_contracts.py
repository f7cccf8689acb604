"""What every tuner must keep, on every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families import FAMILIES, tiny
from temper.delta.base import read_delta
from temper.models.load import load_model
from temper.models.model import Model
from temper.tune.base import Tune
from temper.tune.init.base import LowRankInit
from training import REORDERING, attach, moved, outputs

CONTRACTS: dict[str, object] = {
    **{name: {name: dict(method.example)} for name, method in Tune.methods().items()},
    "lora of many ranks": {"lora": {"rank": 3, "ranks": {"down": 5, "0.*": 2}}},
    **{
        f"lora by {name}": {"lora": {"rank": 3, "init": {name: dict(way.example)}}}
        for name, way in LowRankInit.methods().items()
    },
    "lora by corda, learning": {"lora": {"rank": 3, "ranks": {"down": 5}, "init": {"corda": {"mode": "learn"}}}},
    "bone, guided": {"bone": {"form": "guided", "block": 4}},
    "lisa by outliers": {"lisa": {"blocks": 1, "score": {"outlier": {"threshold": 3}}}},
    "full but one block": {"full": {"freeze": ["*.0.*"]}},
}
"""every registered tuner as it comes, every start of a low-rank one, and settings worth a look"""


def load_result(folder: Path, family: str) -> Model:
    """The model that a stage's folder stands for."""
    if (folder / "model").is_dir():
        return load_model(folder / "model")
    model = tiny(family)
    read_delta(folder / "delta").apply(model)
    return model


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attached_but_untrained_is_the_base_and_merged_is_attached(family: str, name: str) -> None:
    model = tiny(family)
    base = outputs(model)
    tuning = attach(CONTRACTS[name], model, seed=3)
    if not Tune.parse(CONTRACTS[name]).starts_at_base:
        assert not torch.equal(outputs(model), base)
    elif name in REORDERING:
        torch.testing.assert_close(outputs(model), base, atol=2e-5, rtol=1e-5)
    else:
        assert torch.equal(outputs(model), base)
    moved(tuning)
    attached = outputs(model)
    assert float((attached - base).abs().max()) > 1e-3
    tuning.merge()
    # The update is added to the weight instead of to the output: float32 rounding of sums of some fifty products.
    torch.testing.assert_close(outputs(model), attached, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_is_saved_and_tied_stays_tied(tmp_path: Path, family: str, name: str) -> None:
    model = tiny(family)
    tuning = attach(CONTRACTS[name], model)
    moved(tuning)
    attached = outputs(model)
    tuning.save(tmp_path)
    again = load_result(tmp_path, family)
    torch.testing.assert_close(outputs(again), attached, atol=2e-5, rtol=1e-5)
    if model.anatomy.is_tied:
        named = dict(again.module.named_modules())
        assert named[again.anatomy.head].weight is named[again.anatomy.embedding].weight


def test_parameters_have_stable_names_and_are_float32() -> None:
    for written in CONTRACTS.values():
        one, other = (list(attach(written, tiny("phi3", dtype=torch.bfloat16)).parameters()) for _ in range(2))
        assert [name for name, _ in one] == [name for name, _ in other]
        assert len({name for name, _ in one}) == len(one)
        assert {parameter.dtype for _, parameter in one} == {torch.float32}
        assert all(parameter.requires_grad for _, parameter in one)
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))
