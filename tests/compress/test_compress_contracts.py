"""What every compressor must keep: a smaller file that reads back, and the same one again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benches import RunWithData
from deltas import KINDS
from families import tiny
from temper.compress.base import Compress
from temper.delta.base import Delta, read_delta
from temper.models.load import load_model
from temper.models.model import Model
from temper.stages.base import Stage

NEEDS: dict[str, dict[str, Any]] = {}
"""settings without which a method cannot be, or would take long"""
CONTRACTS: dict[str, Any] = {
    name: {name: NEEDS.get(name, dict(method.example))} for name, method in Compress.methods().items()
}


def compressed(folder: Path, written: Any, kind: str, family: str) -> tuple[RunWithData, Any, dict[str, Any]]:
    run = RunWithData(folder, family)
    run.finish("adapt", KINDS[kind](tiny(family)))
    stage = Stage.parse({"compress": {"method": written, "of": "adapt"}})
    details = stage.run(run, "base").details
    result: Delta | Model = (
        read_delta(run.folder / "delta") if (run.folder / "delta").is_dir() else load_model(run.folder / "model")
    )
    return run, result, details


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_smaller_fits_and_is_reproducible(tmp_path: Path, written: Any, kind: str, family: str) -> None:
    run, result, details = compressed(tmp_path / "a", written, kind, family)
    _, again, _ = compressed(tmp_path / "b", written, kind, family)
    # What is ternary or sparse is small already.
    assert 0 < details["bytes"] < details["bytes_in_16_bits"] or kind in ("ternary", "sparse")
    models = []
    for made in (result, again):
        model = made if isinstance(made, Model) else tiny(family)
        if isinstance(made, Delta):
            made.apply(model)
        models.append(dict(model.module.named_parameters()))
    for name, value in models[0].items():
        assert torch.isfinite(value).all() and torch.equal(value, models[1][name]), name
    assert run.said, "it says what was saved"


@pytest.mark.parametrize("written", CONTRACTS.values(), ids=CONTRACTS)
def test_settings_survive_being_written(written: Any) -> None:
    method = Compress.parse(written)
    assert Compress.parse(method.written()) == method
