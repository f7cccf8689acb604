"""Contrastive decoding against its formula on plain forward passes, its exact cases, and a recipe that measures it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import tiny
from measuring import write_rows
from temper.core.errors import SettingError
from temper.data.pack import pack
from temper.decode.base import Decode
from temper.models.generate import generate
from temper.models.load import save_model
from temper.models.model import Model
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import run
from temper.signals.forward import forward, token_logprobs
from training import examples

SMALL = {"hidden_size": 32, "num_hidden_layers": 1}


def contrastive(expert: Model, amateur: Model, **settings: Any) -> Model:
    method = Decode.parse({"contrastive": settings})
    method.check(2)
    return method.join([expert, amateur])


@torch.no_grad()
def naive_next(expert: Model, amateur: Model, tokens: list[int], alpha: float, beta: float) -> Tensor:
    """The scores of one next token, on logits, token by token of the vocabulary."""
    theirs, weak = (model.module(torch.tensor([tokens])).logits[0, -1] for model in (expert, amateur))
    most = float(theirs.softmax(0).max())
    scores = [
        (1 + beta) * float(theirs[v]) - beta * float(weak[v]) if float(p) >= alpha * most else -math.inf
        for v, p in enumerate(theirs.softmax(0))
    ]
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.5), (0.4, 2.0), (0.05, 1.0)])
def test_it_is_the_formula(alpha: float, beta: float) -> None:
    expert, amateur = tiny(), tiny(seed=1, **SMALL)
    model = contrastive(expert, amateur, alpha=alpha, beta=beta, rest=0)
    prompt, text = [1, 5, 9, 20], list[int]()
    for _ in range(10):
        text.append(int(naive_next(expert, amateur, prompt + text, alpha, beta).argmax()))
    assert generate(model, [prompt], 10, stop=[]) == [text]

    batch = pack(examples((9,)))
    with torch.no_grad():
        logprobs_NV = forward(model, batch, lambda logits, targets: logits)
    for logprobs_V, place in zip(logprobs_NV, batch.supervised_N.tolist(), strict=True):
        naive_V = naive_next(expert, amateur, batch.tokens_T[: place + 1].tolist(), alpha, beta).log_softmax(0)
        is_out_V = naive_V.isinf()
        assert 0 < int(is_out_V.sum()) < 96 and torch.equal(logprobs_V.isinf(), is_out_V)
        # Float32 logits of the order of 1, times 1 + beta.
        torch.testing.assert_close(logprobs_V[~is_out_V].double(), naive_V[~is_out_V], atol=2e-5, rtol=1e-5)


def test_without_contrast_and_mask_it_is_the_expert_and_against_itself_too() -> None:
    expert, batch = tiny(), pack(examples())
    with torch.no_grad():
        own_N = token_logprobs(expert, batch)
        for amateur, settings in ((tiny(seed=1, **SMALL), {"beta": 0.0}), (expert, {"beta": 3.0})):
            model = contrastive(expert, amateur, alpha=1e-30, **settings)
            torch.testing.assert_close(token_logprobs(model, batch), own_N, atol=2e-5, rtol=1e-5)
        other = contrastive(expert, tiny(seed=1, **SMALL), alpha=1e-30, beta=3.0)
        assert float((token_logprobs(other, batch) - own_N).abs().max()) > 0.1, "the control"


def test_the_rest_is_the_experts() -> None:
    """p = (1 - rest) softmax(s) + rest p_e, which leaves nothing impossible."""
    expert, amateur, batch = tiny(), tiny(seed=1, **SMALL), pack(examples())
    with torch.no_grad():
        pure_N = token_logprobs(contrastive(expert, amateur, alpha=0.5, rest=0), batch).exp()
        mixed_N = token_logprobs(contrastive(expert, amateur, alpha=0.5, rest=0.01), batch)
        expected_N = 0.99 * pure_N + 0.01 * token_logprobs(expert, batch).exp()
    assert (pure_N == 0).any() and mixed_N.isfinite().all()
    torch.testing.assert_close(mixed_N.exp(), expected_N, atol=1e-7, rtol=1e-5)


def test_other_numbers_of_models_are_refused() -> None:
    for count in (1, 3):
        with pytest.raises(SettingError, match=rf"of: {count} models are no pair; name the expert, then the amateur"):
            Decode.parse("contrastive").check(count)


def test_a_recipe_measures_it_by_perplexity(tmp_path: Path) -> None:
    save_model(tiny(**SMALL), tmp_path / "small")
    save_model(tiny(seed=2), tmp_path / "large")
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q{n} ", "completion": str(n)} for n in range(20)])
    recipe: dict[str, Any] = {
        "name": "up",
        "base": str(tmp_path / "small"),
        "measure": {"gain": [{"perplexity": {"source": rows, "name": "p"}}], "keep": ["drift"], "shots": 0},
        "stages": [
            {"name": "large", "load": {"path": str(tmp_path / "large")}},
            {"name": "up", "decode": {"method": {"contrastive": {"alpha": 0.9}}, "of": ["large", "base"]}},
        ],
    }
    done = run(Recipe.parse(recipe), runs=tmp_path / "runs", say=lambda line: None)
    value = done.stages["up"].suites["p"]["value"]
    assert value > 1e3, "hardly a token of the rows is plausible to a random model, yet the value is a number"
    assert math.isfinite(value)
