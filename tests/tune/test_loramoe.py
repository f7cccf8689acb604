"""LoRAMoE: experts behind a router, balanced by type of data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, tiny
from finished_run import FinishedRun
from temper.core.errors import DataError, ModelError, SettingError, TrainingError
from temper.core.schedule import Moment
from temper.data.example import Example
from temper.data.pack import Batch, pack
from temper.delta import LowRankDelta, add, read_delta
from temper.delta.experts import ExpertsDelta
from temper.engine.loop import to_batches
from temper.models.generate import generate
from temper.models.load import fingerprint_module, save_model
from temper.models.model import Model
from temper.signals.forward import token_logprobs
from temper.stages.base import Stage
from temper.tune.loramoe import SWITCH, LoRAMoETuning, balance
from training import attach, examples, make_loop, moved, outputs, trained

START = Moment(0, 0.0)


def loramoe(model: Model, **settings: Any) -> LoRAMoETuning:
    tuning = attach({"loramoe": settings}, model)
    assert isinstance(tuning, LoRAMoETuning)
    return tuning


def typed(lengths: tuple[int, ...] = (5, 9, 12, 7, 4, 16)) -> list[Example]:
    """Examples of which every other one is of facts."""
    made = examples(lengths)
    return [replace(each, columns={"task": "facts" if index % 2 else "sort"}) for index, each in enumerate(made)]


def gates(x_TI: Tensor, router_NI: Tensor) -> Tensor:
    return torch.softmax(x_TI @ router_NI.T, -1)


def attach_naively(model: Model, tuning: LoRAMoETuning, gradients: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """A loop over the experts, as the formula has it; returns leaves, and what the routers said when it runs."""
    leaves, said = [], []
    for each in tuning.experts:
        own = [tensor.detach().clone().requires_grad_(gradients) for _, tensor in each.parameters()]
        leaves += own

        def hook(_: nn.Module, args: tuple[Tensor], out: Tensor, own: list[Tensor] = own, each: Any = each) -> Tensor:
            router_NI, a_NRI, b_NOR = own
            gate_TN = gates(args[0], router_NI)
            said.append(gate_TN[0])
            rows = (
                range(out.shape[-1]) if each.part.rows is None else [i for run in each.part.rows for i in range(*run)]
            )
            out = out.clone()
            for n in range(len(router_NI)):
                added = gate_TN[..., n : n + 1] * (args[0] @ a_NRI[n].T @ b_NOR[n].T) * each.experts.scaling
                out[..., list(rows)] = out[..., list(rows)] + added
            return out

        model.module.get_submodule(each.part.path).register_forward_hook(hook)
    return leaves, said


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_a_loop_over_experts(family: str) -> None:
    model, other = tiny(family), tiny(family)
    tuning = loramoe(model, num_experts=4, rank=3)
    moved(tuning)
    attach_naively(other, tuning)
    # Sums over experts in another order, in two blocks.
    torch.testing.assert_close(outputs(model), outputs(other), atol=2e-5, rtol=1e-4)
    assert float((outputs(model) - outputs(tiny(family))).abs().max()) > 1e-3


def naive_balance(said: list[Tensor], batch: Batch, settings: dict[str, Any]) -> Tensor:
    """The authors' formula: mass of each expert in each example, weighed by type; variance over squared mean."""
    total = torch.zeros(())
    num = said[0].shape[1]
    for gate_TN in said:
        z = []
        start = 0
        for length, columns in zip(batch.lengths, batch.columns, strict=True):
            for n in range(num):
                fits = (columns["task"] in settings.get("knowledge", ())) == (n < num // 2)
                delta = settings.get("delta", 0.1)
                weight = 1.0 if not settings.get("knowledge") else 1 + delta if fits else 1 - delta
                z.append(weight * gate_TN[start : start + length, n].sum())
            start += length
        stacked = torch.stack(z)
        mean = stacked.sum() / len(z)
        total = total + (stacked - mean).square().sum() / (len(z) - 1) / mean.square()
    return total


@pytest.mark.parametrize("recompute", [0.0, 1.0])
@pytest.mark.parametrize("micro_tokens", [1000, 20])
@pytest.mark.parametrize("knowledge", [(), ("facts",)])
def test_the_term_and_its_gradient_are_the_formula_however_the_step_is_cut(
    knowledge: tuple[str, ...], micro_tokens: int, recompute: float, tmp_path: Path
) -> None:
    settings = {"num_experts": 4, "rank": 2, "beta": 0.7}
    if knowledge:
        settings |= {"delta": 0.4, "knowledge": list(knowledge)}
    made = typed()
    # A vanishing rate: one step of the loop leaves its gradients to be looked at, and the numbers as they are.
    loop = make_loop(
        tmp_path, made=made, tune={"loramoe": settings}, num_steps=1, batch_size=len(made), lr=1e-12, clip=None,
        micro_tokens=micro_tokens, recompute=recompute,
    )  # fmt: skip
    tuning = loop.tuning
    assert isinstance(tuning, LoRAMoETuning)
    moved(tuning)
    other = tiny("llama")
    leaves, said = attach_naively(other, tuning, gradients=True)
    batch = pack(made)
    loss = -(token_logprobs(other, batch) * batch.weights_N).sum() / batch.weights_N.sum()
    term = 0.7 * naive_balance(said, batch, settings)
    (loss + term).backward()

    found: dict[str, Tensor] = {}
    seen: list[dict[str, float]] = []
    loop.update = lambda: found.update({name: p.grad.clone() for name, p in loop.trained if p.grad is not None})  # type: ignore[method-assign]
    loop.on_step = seen.append
    loop.run()
    assert seen[0]["penalty"] == pytest.approx(float(term.detach()), rel=1e-4)
    assert len(found) == len(leaves)
    for (name, gradient), leaf in zip(found.items(), leaves, strict=True):
        # Float32 sums in another order; the term's own gradient is of the order of 0.01 to 1.
        torch.testing.assert_close(gradient, leaf.grad, atol=3e-6, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_a_step_without_gradients_sees_the_term_however_it_is_cut(tmp_path: Path) -> None:
    def slope(micro_tokens: int, beta: float) -> float:
        folder = tmp_path / f"{micro_tokens} {beta}"
        tune = {"loramoe": {"num_experts": 4, "rank": 2, "beta": beta}}
        optimizer = {"seeds": {"num_seeds": 1, "eps": 1e-3}}
        settings = {"made": typed(), "batch_size": len(typed()), "micro_tokens": micro_tokens}
        make_loop(folder, tune=tune, optimizer=optimizer, num_steps=1, lr=1e-12, **settings).run()
        return float(json.loads((folder / "metrics.jsonl").read_text())["scalar"])

    whole, cut, free = slope(1000, 50.0), slope(20, 50.0), slope(1000, 0.0)
    assert abs(whole - free) > 1
    assert cut == pytest.approx(whole, rel=1e-2)


def test_types_and_delta_weigh_as_they_should() -> None:
    settings = {"num_experts": 4, "delta": 0.25, "knowledge": ["facts"]}
    tuning = loramoe(tiny("llama"), **settings)
    coefficient_MN = tuning.settings.coefficients(pack(typed((3, 4))))
    assert coefficient_MN.tolist() == [[0.75, 0.75, 1.25, 1.25], [1.25, 1.25, 0.75, 0.75]]
    # Split by type the products are equal where the untyped term would see an imbalance, and the other way round.
    split_MN = torch.tensor([[0.0, 0.0, 3.0, 3.0], [3.0, 3.0, 0.0, 0.0]])
    even_MN = torch.full((2, 4), 1.5)
    assert float(balance(even_MN, torch.ones(2, 4))) == 0 < float(balance(even_MN, coefficient_MN))
    leaning_MN = 1 / coefficient_MN
    assert float(balance(leaning_MN, coefficient_MN)) == pytest.approx(0, abs=1e-9)
    assert float(balance(split_MN, torch.ones(2, 4))) > 1
    untyped = loramoe(tiny("llama"), num_experts=4)
    assert (untyped.settings.coefficients(pack(typed((3, 4)))) == 1).all()


def shares(tuning: LoRAMoETuning, made: list[Example]) -> float:
    """Return how much more of a fact's tokens goes to the experts of knowledge than of another row's."""
    model, batch = tuning.model, pack(made)
    model.module.train()
    with torch.no_grad():
        tuning.look()
        token_logprobs(model, batch)
        masses = [each.mass(batch, SWITCH) for each in tuning.experts]
    half = masses[0].shape[1] // 2
    share_M = torch.stack([mass_MN[:, :half].sum(1) / mass_MN.sum(1) for mass_MN in masses]).mean(0)
    is_fact_M = torch.tensor([columns["task"] == "facts" for columns in batch.columns])
    return float(share_M[is_fact_M].mean() - share_M[~is_fact_M].mean())


def test_routers_part_the_types_only_when_they_are_balanced_by_type(tmp_path: Path) -> None:
    """Facts are written in some tokens and sorting in others, so that a router can tell them apart."""
    made = []
    for each in typed((12,) * 16):
        low, high = (4, 40) if each.columns["task"] == "facts" else (50, 90)
        sequence = each.sequences[0]
        made.append(replace(each, sequences=(replace(sequence, tokens_T=low + sequence.tokens_T % (high - low)),)))

    def parted(folder: str, **settings: Any) -> float:
        tune = {"loramoe": {"num_experts": 4, "rank": 2, "targets": ["up"], **settings}}
        loop = make_loop(tmp_path / folder, made=made, tune=tune, num_steps=30, batch_size=16, lr=2e-2)
        loop.run()
        assert isinstance(loop.tuning, LoRAMoETuning)
        return shares(loop.tuning, made)

    typed_share = parted("typed", knowledge=["facts"], delta=0.5, beta=3.0)
    free = parted("free", knowledge=["facts"], delta=0.5, beta=0.0)
    untyped = parted("untyped", beta=3.0)
    # The term is 0 where Q is as 1 / I: shares of 0.25 and 0.75 of the experts of knowledge, a difference of -0.5.
    assert -0.6 < typed_share < -0.2
    assert abs(free) < 0.1 and abs(untyped) < 0.1


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    tune = {"loramoe": {"num_experts": 2, "rank": 2, "knowledge": ["facts"], "dropout": 0.1}}
    made = typed(tuple(range(3, 23)))
    whole = trained(make_loop(tmp_path / "whole", made=made, tune=tune, micro_tokens=24))

    class Stop(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise Stop

    first = make_loop(tmp_path / "parts", made=made, tune=tune, micro_tokens=24, checkpoint_steps=2)
    first.on_step = stop
    with pytest.raises(Stop):
        first.run()
    again = trained(make_loop(tmp_path / "parts", made=made, tune=tune, micro_tokens=24, checkpoint_steps=2))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_saved_experts_are_attached_generate_and_come_off_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    base, fingerprint = outputs(model), fingerprint_module(model.module, model.tokenizer)
    tuning = loramoe(model, num_experts=2, rank=2)
    moved(tuning)
    attached = outputs(model)
    prompts = [[1, 5, 9, 44, 7], [1, 8]]
    written = generate(model, prompts, 6)
    tuning.save(tmp_path)
    tuning.detach()
    assert torch.equal(outputs(model), base)

    delta = read_delta(tmp_path / "delta")
    assert isinstance(delta, ExpertsDelta) and delta.provenance.method == tuning.provenance.method
    assert delta.num_values == sum(parameter.numel() for _, parameter in tuning.parameters())
    applied = delta.apply(model)
    assert torch.equal(outputs(model), attached)
    assert fingerprint_module(model.module, model.tokenizer) != fingerprint
    assert generate(model, prompts, 6) == written
    # With a cache a token at a time, without one all of them again: the same texts.
    for prompt, text in zip(prompts, written, strict=True):
        tokens = list(prompt)
        for token in text:
            with torch.no_grad():
                logits = model.module(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            tokens.append(token)
    second = delta.scale(0.5).apply(model)
    assert not torch.equal(outputs(model), attached)
    second.undo()
    applied.undo()
    assert torch.equal(outputs(model), base)
    assert fingerprint_module(model.module, model.tokenizer) == fingerprint


def test_what_asks_for_weights_is_told_that_there_are_none(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, "llama")
    model = tiny("llama")
    tuning = loramoe(model, num_experts=2, rank=2)
    moved(tuning)
    delta = tuning.delta()
    tuning.merge()
    with pytest.raises(ModelError, match="experts_0"):
        save_model(model, tmp_path / "model")
    with pytest.raises(ModelError, match="experts_0"):
        attach("full", model)
    run.finish("experts", delta)
    with pytest.raises(ModelError, match="experts behind a router"):
        Stage.parse({"merge": {"method": "linear", "of": ["experts"]}}).run(run, "base")
    with pytest.raises(ModelError, match="keep it as the change that it is"):
        Stage.parse({"export": {"from": "experts"}}).run(run, "base")
    with pytest.raises(SettingError, match="is experts, not low-rank"):
        Stage.parse({"export": {"from": "experts", "as": "adapter"}}).run(run, "base")
    with pytest.raises(ModelError, match="experts behind a router"):
        add(delta, LowRankDelta({}))
    with pytest.raises(ModelError, match="has shape"):
        delta.fit(tiny("llama", intermediate_size=80).module)
    with pytest.raises(ModelError, match="no such module"):
        delta.fit(tiny("gpt2").module)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(SettingError, match=r"tune\.loramoe\.rank: 49 exceeds"):
        loramoe(tiny("llama"), rank=49)
    tuning = loramoe(tiny("llama"), knowledge=["facts"], column="kind")
    with pytest.raises(DataError, match="made:1: has no column 'kind'"):
        tuning.before_batches([pack(examples((4, 5)))], START)
    tuning = loramoe(tiny("llama"))
    batches = to_batches(typed(), 1000)
    tuning.before_batches(batches, START)
    tuning.before_pass(batches[0])
    with pytest.raises(TrainingError, match=r"read 0 tokens of a batch of 53.*set tune\.loramoe\.beta to 0"):
        tuning.after_pass(batches[0])
