"""A head for labels is kept where it fits, written where it can be, and refused where it would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benches import RunWithData
from deltas import make_low_rank
from families import tiny
from temper.core.errors import SettingError
from temper.data.sources.file import FileSource
from temper.decode.base import Decode
from temper.measure.label_accuracy import LabelAccuracy
from temper.models.load import load_model
from temper.signals.labels import LabelHead
from temper.stages.base import Stage
from temper.stages.compress import StageOriginal


@pytest.fixture
def run(tmp_path: Path) -> RunWithData:
    """A run with the stages `sorter`, which has learnt a head, and `plain`, which has not."""
    run = RunWithData(tmp_path, "llama")
    for name, seed in (("sorter", 1), ("plain", 2)):
        run.finish(name, make_low_rank(tiny("llama"), seed))
    sorter = run.artifact("sorter")
    assert sorter is not None
    LabelHead.new(tiny("llama"), ("yes", "no"), "last", True, seed=3).save(sorter)
    return run


def same_head(one: Path, other: Path) -> bool:
    first, second = (LabelHead.load(folder, torch.device("cpu")) for folder in (one, other))
    return torch.equal(first.weight_KD, second.weight_KD) and first.labels == second.labels


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_an_export_holds_the_head_and_says_so(run: RunWithData, form: str) -> None:
    outcome = Stage.parse({"export": {"from": "sorter", "as": form}}).run(run, "base")
    sorter = run.artifact("sorter")
    assert sorter is not None and same_head(run.folder / "export" / "head", sorter / "head")
    assert any("the head for labels lies in head/" in warning for warning in outcome.warnings)
    if form == "model":
        load_model(run.folder / "export")
    plain = Stage.parse({"export": {"from": "plain", "as": form, "to": str(run.folder / "plain")}}).run(run, "base")
    assert plain.warnings == [] and not (run.folder / "plain" / "head").exists()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"merge": {"method": "linear", "of": ["plain", "sorter"]}}, "merge.of"),
        ({"merge": {"method": "linear", "of": ["plain"], "base": "sorter"}}, "merge.of"),
        ({"port": {"of": "sorter", "onto": "plain"}}, "port.of"),
        ({"port": {"of": "plain", "onto": "sorter"}}, "port.of"),
    ],
)
def test_where_it_would_be_lost_it_is_refused(run: RunWithData, settings: dict[str, Any], key: str) -> None:
    stage = Stage.parse(settings)
    with pytest.raises(SettingError, match=f"{key}: 'sorter' has learnt a head for labels, which .*; name the stage"):
        stage.run(run, "base")
    assert not (run.folder / "model").exists() and not (run.folder / "delta").exists()


def test_a_smaller_change_keeps_it_and_is_measured_with_it(run: RunWithData, tmp_path: Path) -> None:
    Stage.parse({"compress": {"method": "compeft", "of": "sorter"}}).run(run, "base")
    sorter = run.artifact("sorter")
    assert sorter is not None and same_head(run.folder / "head", sorter / "head")

    # One text with either label: any head is right of one of the two, and a model without one of none.
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "abc", "class": "yes"}\n{"text": "abc", "class": "no"}\n', encoding="utf-8")
    suite = LabelAccuracy(source=FileSource(path=(str(data),)))
    for stage, value in (("sorter", 0.5), ("plain", 0.0)):
        original = StageOriginal(run, stage, "base")
        assert original.score(suite, original.change()) == value


def test_models_that_are_combined_have_none() -> None:
    expert = tiny("llama")
    expert.head = Path("head")
    joined = Decode.parse("emulated_fine_tuning").join([expert, tiny("llama"), tiny("llama")])
    assert joined.head is None and expert.head is not None
