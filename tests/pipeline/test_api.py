"""Python without a recipe: the pieces of the package's docstring, on a tiny model."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import temper
from families import tiny
from temper.core.errors import DataError, SettingError
from temper.models.load import fingerprint_module, save_model
from temper.tune.base import Tune


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tiny("llama", num_hidden_layers=1), tmp_path / "base")
    return tmp_path / "base"


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def test_the_pieces(base: Path) -> None:
    model = temper.load_model(base)
    before = weights(model)
    rows = temper.open_rows("lab/reverse")
    settings = temper.FitSettings(tune=Tune.parse("lora"), lr=1e-2, steps=5, batch_size=8, precision="fp32")
    fitted = temper.fit(model, rows, settings)
    fitted.tuning.save(Path("out"))
    fitted.tuning.detach()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    temper.read_delta(Path("out/delta")).apply(model)
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())
    report = temper.evaluate(model, ["lab/reverse", "drift"], base=temper.load_model(base), examples=8)
    assert report["suites"]["lab/reverse"]["num_examples"] == 8
    drift = report["suites"]["drift"]
    assert drift["value"] > 0 and drift["changes"]["base"]["difference"] == pytest.approx(drift["value"])
    prompt = model.tokenizer("reverse:ab=")["input_ids"]
    assert len(temper.generate(model, [prompt], 3)[0]) <= 3


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_model_that_has_been_trained_is_measured_anew(base: Path, tune: str) -> None:
    suites, rows = [{"perplexity": {"source": "lab/sort"}}], temper.open_rows("lab/sort")

    def perplexity(model: Any, cache: str | None) -> float:
        return float(temper.evaluate(model, suites, examples=16, cache=cache)["suites"]["lab/sort"]["value"])

    model = temper.load_model(base)
    before = perplexity(model, "kept")
    assert perplexity(temper.load_model(base), "kept") == before
    first = temper.fit(model, rows, temper.FitSettings(tune=tune, lr=1e-2, steps=5, batch_size=8, precision="fp32"))
    trained = perplexity(model, "kept")
    assert trained == perplexity(model, None) != before
    assert perplexity(temper.load_model(base), "kept") == before, "what was kept of the base is the base's"
    if tune == "lora":
        first.tuning.merge()
        second = temper.fit(model, rows, temper.FitSettings(tune=tune, steps=1, precision="fp32"))
        second.tuning.save(Path("second"))
        named = temper.read_delta(Path("second/delta")).provenance.base_fingerprint
        assert named == fingerprint_module(model.module, model.tokenizer) != temper.load_model(base).fingerprint


def test_a_recipe_and_the_pieces_measure_the_same(base: Path) -> None:
    written = {
        "base": str(base),
        "measure": {"gain": [{"perplexity": {"source": "lab/sort"}}], "examples": 16, "shots": 0},
        "stages": [{"name": "a", "train": {"data": ["lab/sort"], "steps": 2, "batch_size": 4, "precision": "fp32"}}],
    }
    result = temper.run(temper.Recipe.parse(written), say=lambda text: None)
    model = result.model("a")
    assert model.fingerprint == fingerprint_module(model.module, model.tokenizer) != result.model("base").fingerprint
    suites = [{"perplexity": {"source": "lab/sort"}}]
    report = temper.evaluate(model, suites, examples=16)["suites"]["lab/sort"]
    assert report["value"] == pytest.approx(result.stages["a"].suites["lab/sort"]["value"], rel=1e-6)


def test_wrong_names_are_explained(base: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        temper.open_rows("nowhere.jsonl")
    with pytest.raises(SettingError, match="has no effect on a model that is made here"):
        temper.load_model("lab:tiny", dtype="float32")


def test_the_docstring_s_code_uses_what_there_is() -> None:
    blocks = str(temper.__doc__).split("```python")[1:]
    assert len(blocks) == 2
    for block in blocks:
        code = block.partition("```")[0]
        tree = ast.parse(textwrap.dedent(code))
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        names = {node.attr for node in used if ast.unparse(node.value) == "temper"}
        assert names and names <= set(temper.__all__)


def test_a_stage_that_does_not_fit_is_not_said_to_be_missing() -> None:
    wrong: Any = {"base": "lab:tiny", "stages": [{"name": "a", "train": {"data": ["lab/copy"], "steps": -1}}]}
    with pytest.raises(ValueError, match="settings of train: steps") as caught:
        temper.Recipe(**wrong)
    assert "at least 1 item" not in str(caught.value)
    with pytest.raises(ValueError, match="at least 1 item"):
        temper.Recipe(**{**wrong, "stages": []})
    assert temper.Recipe.model_json_schema()["properties"]["stages"]["minItems"] == 1
