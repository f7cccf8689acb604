"""EFT against its formula on plain forward passes, its exact cases, and a recipe that measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltas import make_dense
from families import tiny
from measuring import write_rows
from temper.core.errors import SettingError, StageError
from temper.data.pack import pack
from temper.decode.base import Decode
from temper.models.generate import generate
from temper.models.load import save_model
from temper.models.model import Model
from temper.pipeline.models import load_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import run
from temper.signals.forward import token_logprobs
from training import examples

SMALL = {"hidden_size": 32, "num_hidden_layers": 1}


def eft(*models: Model, beta: Any = 1.0) -> Model:
    method = Decode.parse({"emulated_fine_tuning": {"beta": beta}})
    method.check(len(models))
    return method.join(models)


def tuned(**changes: Any) -> Model:
    model = tiny(**changes)
    make_dense(model, 3).apply(model)
    return model


@torch.no_grad()
def naive_next(betas: list[float], models: list[Model], tokens: list[int]) -> Tensor:
    logs = [model.module(torch.tensor([tokens])).logits[0, -1].log_softmax(0) for model in models]
    total = logs[0].clone()
    for number, beta in enumerate(betas):
        total += beta * (logs[1 + 2 * number] - logs[2 + 2 * number])
    return total.log_softmax(0)


@pytest.mark.parametrize("betas", [[1.0], [0.4], [0.7, 0.3]])
def test_it_is_the_formula(betas: list[float]) -> None:
    pairs = [[tuned(seed=number, **SMALL), tiny(seed=number, **SMALL)] for number in range(len(betas))]
    models = [tiny(), *(model for pair in pairs for model in pair)]
    model = eft(*models, beta=betas if len(betas) > 1 else betas[0])
    prompt, text = [1, 5, 9, 20], []
    for _ in range(10):
        text.append(int(naive_next(betas, models, prompt + text).argmax()))
    assert generate(model, [prompt], 10, stop=[]) == [text]
    batch = pack(examples())
    with torch.no_grad():
        ours = token_logprobs(model, batch)
    starts = torch.tensor([0, *torch.tensor(batch.lengths).cumsum(0).tolist()])
    for place, target, logprob in zip(
        batch.supervised_N.tolist(), batch.targets_N.tolist(), ours.tolist(), strict=True
    ):
        start = int(starts[starts <= place].max())
        theirs = naive_next(betas, models, batch.tokens_T[start : place + 1].tolist())
        # Log-probabilities of a few nats from five float32 forward passes in another layout.
        assert logprob == pytest.approx(float(theirs[target]), abs=2e-4)


def test_the_exact_cases() -> None:
    batch = pack(examples())
    with torch.no_grad():
        base, adapted = token_logprobs(tiny(), batch), token_logprobs(tuned(), batch)
        same_size = token_logprobs(eft(tiny(), tuned(), tiny()), batch)
        nothing = token_logprobs(eft(tiny(), tuned(**SMALL), tiny(**SMALL), beta=0.0), batch)
        no_change = token_logprobs(eft(tiny(), tiny(**SMALL), tiny(**SMALL)), batch)
    # Sums of log-probabilities of a few nats.
    torch.testing.assert_close(same_size, adapted, atol=1e-4, rtol=0)
    torch.testing.assert_close(nothing, base, atol=1e-4, rtol=0)
    torch.testing.assert_close(no_change, base, atol=1e-4, rtol=0)
    assert float((adapted - base).abs().max()) > 0.1


def test_models_that_make_no_pairs_are_refused() -> None:
    method = Decode.parse("emulated_fine_tuning")
    for num in (1, 2, 4):
        with pytest.raises(SettingError, match="not one and pairs"):
            method.check(num)
    with pytest.raises(SettingError, match="2 factors for 1 pairs"):
        Decode.parse({"emulated_fine_tuning": {"beta": [1, 2]}}).check(3)


def test_a_recipe_measures_the_combination_and_talks_with_it(tmp_path: Path) -> None:
    save_model(tiny(**SMALL), tmp_path / "small")
    save_model(tiny(seed=2), tmp_path / "large")
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q{n} ", "completion": str(n)} for n in range(20)])
    recipe: dict[str, Any] = {
        "name": "up",
        "base": str(tmp_path / "small"),
        "measure": {
            "gain": [{"exact_match": {"source": rows}}, {"perplexity": {"source": rows, "name": "p"}}],
            "keep": ["drift"],
            "shots": 0,
        },
        "stages": [
            {"name": "tuned", "train": {"data": [rows], "tune": "full", "lr": 1e-2, "steps": 3}},
            {"name": "large", "load": {"path": str(tmp_path / "large")}},
            {"name": "up", "decode": {"method": "emulated_fine_tuning", "of": ["large", "tuned", "base"]}},
        ],
    }
    said: list[str] = []
    done = run(Recipe.parse(recipe), runs=tmp_path / "runs", say=said.append)
    values = {name: done.stages[name].suites["p"]["value"] for name in ("large", "up")}
    assert values["up"] < values["large"], "three steps of the small model lower the large one's perplexity"
    model = load_model(tmp_path / "runs" / "up", "up")
    assert len(model.members) == 3 and model.fusion is not None
    expected = eft(done.model("large"), done.model("tuned"), done.model("base"))
    assert generate(model, [[1, 5]], 6) == generate(expected, [[1, 5]], 6)
    assert load_model(tmp_path / "runs" / "up").fusion is not None, "the last model of the run"
    said.clear()
    run(Recipe.parse(recipe), runs=tmp_path / "runs", say=said.append)
    assert all("done before" in line for line in said if line.startswith(("tuned", "large", "up")))
    recipe["stages"].append({"name": "more", "train": {"from": "up", "data": [rows], "steps": 1}})
    with pytest.raises(StageError, match="combination of 3 models"):
        run(Recipe.parse(recipe), runs=tmp_path / "runs", say=said.append)
