"""Greedy and learned soups and aTLAS against the same things written naively, on whole state dicts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benches import RunWithData, bench_of
from deltas import make_dense
from families import tiny
from temper.core.errors import SettingError
from temper.data.encode import Encoder
from temper.measure.base import Subject, Suite
from temper.measure.statistics import value_of
from temper.merge.base import Merge
from temper.merge.learning import Coefficients
from temper.models.load import as_model, load_model
from temper.objectives.base import Objective
from temper.stages.base import Stage

ROWS = {"lab": {"skill": "copy", "num": 8, "lengths": [3, 6]}}
BY = {"perplexity": {"source": ROWS, "split": "train"}}
NAMES = ("a", "b", "c", "d")


def noisy_run(folder: Path, family: str = "llama") -> RunWithData:
    """Four models around one base; the third is far off."""
    run = RunWithData(folder, family)
    for seed, name in enumerate(NAMES):
        run.finish(name, make_dense(tiny(family), seed).scale(5.0 if name == "c" else 0.5))
    return run


def weights(run: RunWithData, stage: str) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.load(stage).module.named_parameters()}


def perplexity(run: RunWithData, state: dict[str, Tensor]) -> float:
    model = tiny(run.family)
    model.module.load_state_dict(state, strict=False)
    score = Suite.parse(BY).measure(Subject(as_model(model.module, model.tokenizer)), run.cache)
    return value_of(score.scores, score.weights, score.transform)


def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def test_the_greedy_soup_is_the_recipe(tmp_path: Path) -> None:
    run = noisy_run(tmp_path)
    states = {name: weights(run, name) for name in NAMES}
    order = sorted(NAMES, key=lambda name: perplexity(run, states[name]))
    soup, best = [order[0]], perplexity(run, states[order[0]])
    for name in order[1:]:
        value = perplexity(run, mean([states[member] for member in [*soup, name]]))
        if value <= best:
            soup, best = [*soup, name], value
    assert 1 < len(soup) < 4, "the case is worth a look"
    stage = Stage.parse({"merge": {"method": {"greedy_soup": {"by": BY}}, "of": NAMES}})
    outcome = stage.run(run, "base")
    assert outcome.details["ingredients"] == soup
    assert [sorted(trial["of"]) for trial in outcome.details["tried"][:4]] == [[name] for name in NAMES]
    made = dict(load_model(run.folder / "model").module.named_parameters())
    for name, value in mean([states[member] for member in soup]).items():
        torch.testing.assert_close(made[name], value, atol=2e-6, rtol=1e-6)
    assert perplexity(run, made) <= min(perplexity(run, state) for state in states.values())
    assert any("perplexity" in line or "lab/copy" in line for line in run.said)


def test_a_suite_whose_values_should_rise_is_sorted_the_other_way(tmp_path: Path) -> None:
    """On right-or-wrong answers all are equally wrong, so every model joins, in the order of `of`."""
    run = noisy_run(tmp_path)
    bench = bench_of(run, NAMES)
    by = {"exact_match": {"source": ROWS, "split": "train", "reserve": 0}}
    merging = Merge.parse({"greedy_soup": {"by": by}}).build(bench)
    assert merging.details["ingredients"] == list(NAMES)


def naive(run: RunWithData, make: Any, raw: Tensor, settings: dict[str, Any]) -> tuple[Tensor, list[float]]:
    """Learn coefficients by autograd through the merged weights of the whole model, all rows in every step."""
    model = tiny(run.family)
    states = [weights(run, name) for name in NAMES[:3]]
    base = {name: value.detach() for name, value in model.module.named_parameters()}
    encoder = Encoder.of(model, 128)
    rows = run.open(Suite.parse(BY).source)  # type: ignore[attr-defined]
    encoded = [encoder.supervised(row) for row in rows.take(range(len(rows)))]
    raw = torch.nn.Parameter(raw.clone())
    optimizer = torch.optim.AdamW([raw], settings["lr"], weight_decay=settings["weight_decay"])
    losses = []
    for step in range(settings["steps"]):
        if settings["cosine"]:
            optimizer.param_groups[0]["lr"] = settings["lr"] * (1 + math.cos(math.pi * step / settings["steps"])) / 2
        merged = {name: base[name] + make(raw, number, base, states, name) for number, name in enumerate(base)}
        total, count = torch.zeros(()), 0
        for sequence in encoded:
            tokens = torch.from_numpy(sequence.tokens_T.astype("int64"))[None]
            logits = torch.func.functional_call(model.module, merged, kwargs={"input_ids": tokens}).logits[0, :-1]
            losses_T = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            is_target = torch.from_numpy(sequence.weights_T[1:] > 0)
            total, count = total + losses_T[is_target].sum(), count + int(is_target.sum())
        (total / count).backward()
        losses.append(float(total.detach()) / count)
        torch.nn.utils.clip_grad_norm_([raw], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return raw.detach(), losses


@pytest.mark.parametrize("per", ["model", "tensor"])
def test_the_learned_soup_is_autograd_through_the_mean(tmp_path: Path, per: str) -> None:
    run = noisy_run(tmp_path)
    bench = bench_of(run, NAMES[:3])
    method = Merge.parse({"learned_soup": {"data": [ROWS], "epochs": 4, "batch_size": 8, "per": per}})
    merging = method.build(bench)
    names = list(dict(bench.model.module.named_parameters()))
    num_blocks = len(names) if per == "tensor" else 1

    def mixed(raw: Tensor, number: int, base: Any, states: Any, name: str) -> Tensor:
        alpha = torch.softmax(raw, 0)[:, number if per == "tensor" else 0, 0]
        return sum(share * (state[name] - base[name]) for share, state in zip(alpha, states, strict=True))

    settings = {"lr": 0.05, "weight_decay": 0.0, "steps": 4, "cosine": False}
    raw, losses = naive(run, mixed, torch.ones(3, num_blocks, 1), settings)
    # Losses of a few nats: float32 sums in another order.
    assert merging.details["losses"] == pytest.approx(losses, rel=2e-5)
    assert losses[-1] < losses[0]
    states, base = [weights(run, name) for name in NAMES[:3]], weights(run, "base")
    for number, name in enumerate(names):
        expected = mixed(raw, number, base, states, name)
        deltas = [state[name] - base[name] for state in states]
        # AdamW steps of 0.05 whose direction is that of float32 gradients: coefficients agree to some 1e-4.
        torch.testing.assert_close(merging.combine(name, base[name], deltas), expected, atol=5e-4, rtol=0)
    shares = merging.details["mean_coefficient"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6) and max(shares.values()) > min(shares.values())


@pytest.mark.parametrize("partitions", [1, 3])
def test_atlas_is_autograd_through_the_composition(tmp_path: Path, partitions: int) -> None:
    run = noisy_run(tmp_path)
    bench = bench_of(run, NAMES[:3])
    method = Merge.parse({"atlas": {"data": [ROWS], "epochs": 4, "batch_size": 8, "partitions": partitions}})
    merging = method.build(bench)
    names = list(dict(bench.model.module.named_parameters()))
    changed = [name for name in names if name in bench.names]
    parts = Coefficients(torch.zeros(3, 1, partitions), (), bench.seed)

    def composed(raw: Tensor, number: int, base: Any, states: Any, name: str) -> Tensor:
        if name not in changed:
            return torch.zeros_like(base[name])
        part = parts._part(name, base[name])
        own = raw[:, changed.index(name)]
        return sum(own[i][part] * (state[name] - base[name]) for i, state in enumerate(states))

    settings = {"lr": 0.1, "weight_decay": 0.1, "steps": 4, "cosine": True}
    raw, losses = naive(run, composed, torch.zeros(3, len(changed), partitions), settings)
    assert merging.details["losses"] == pytest.approx(losses, rel=2e-5)
    assert merging.details["coefficients"] == 3 * len(changed) * partitions
    states, base = [weights(run, name) for name in NAMES[:3]], weights(run, "base")
    for name in changed:
        expected = composed(raw, 0, base, states, name)
        deltas = [state[name] - base[name] for state in states]
        torch.testing.assert_close(merging.combine(name, base[name], deltas), expected, atol=1e-3, rtol=0)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", sorted(Objective.methods()))
def test_what_is_learned_is_a_mixture_and_nothing_else(tmp_path: Path, name: str) -> None:
    """An objective that needs more than the mixture is refused; another one's first loss is its own."""
    settings = {"objective": {name: dict(Objective.methods()[name].example)}, "epochs": 1, "data": [ROWS]}
    if name in {"dpo", "cdpo", "ipo", "kto", "distill", "gist_embed", "ps_kd"}:
        with pytest.raises(ValueError, match=rf"objective: '{name}' (asks another model|learns from the past)"):
            Merge.parse({"atlas": settings})
    elif name in {"classify", "tag"}:
        bench = bench_of(noisy_run(tmp_path), NAMES[:2])
        with pytest.raises(SettingError, match=f"objective: '{name}' trains a head of its own"):
            Merge.parse({"atlas": settings}).build(bench)
    else:
        Merge.parse({"atlas": settings})


def test_a_masked_thought_is_masked_while_a_mixture_is_learned(tmp_path: Path) -> None:
    bench = bench_of(noisy_run(tmp_path), NAMES[:2])
    first = [
        Merge.parse({"atlas": {"data": [ROWS], "epochs": 1, "objective": objective}}).build(bench).details["losses"][0]
        for objective in ("sft", {"masked_thought": {"probability": 0.0}}, {"masked_thought": {"probability": 1.0}})
    ]
    assert first[0] == first[1] != pytest.approx(first[2], rel=1e-3)


def test_few_rows_are_a_step_of_each_pass(tmp_path: Path) -> None:
    bench = bench_of(noisy_run(tmp_path), NAMES[:2])
    merging = Merge.parse({"atlas": {"data": [ROWS], "epochs": 3}}).build(bench)
    assert len(merging.details["losses"]) == 3, "of eight rows each, where a step may take 128"


def test_parts_are_disjoint_and_about_even() -> None:
    part = Coefficients(torch.zeros(1, 1, 4), (), 3)._part("w", torch.zeros(100, 100))
    # 10,000 draws into four: within 5 standard errors of 2,500.
    assert all(abs(int((part == number).sum()) - 2500) < 5 * (10000 * 3 / 16) ** 0.5 for number in range(4))
    assert not torch.equal(part, Coefficients(torch.zeros(1, 1, 4), (), 3)._part("v", torch.zeros(100, 100)))
