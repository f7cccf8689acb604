"""LoFiT: heads are found and get offsets, which fold into biases whether the family has them or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from families import FAMILIES, tiny
from finished_run import FinishedRun
from temper.core.errors import ModelError, SettingError, TrainingError
from temper.core.schedule import Moment
from temper.delta import DenseDelta, add, read_delta
from temper.engine.loop import Validation, to_batches
from temper.models.anatomy import Part
from temper.models.biases import give_biases, take_biases
from temper.models.load import fingerprint_folder, fingerprint_module, load_model, save_model
from temper.models.model import Model
from temper.stages.base import Stage
from temper.tune.base import Tune
from temper.tune.lofit import LoFiTTuning
from training import attach, examples, make_loop, moved, outputs, trained

DESCRIBED = ("llama", "qwen3", "gemma2", "gemma3", "olmo2", "gpt2", "gpt_neox", "opt")
"""families whose configuration can say that the output projection has a bias"""


def lofit(model: Model, **settings: Any) -> LoFiTTuning:
    tuning = attach({"lofit": settings}, model)
    assert isinstance(tuning, LoFiTTuning)
    return tuning


def projections(model: Model) -> list[Part]:
    return list(model.anatomy.parts("o"))


def apply_naively(model: Model, vectors: list[Tensor], rule: str) -> None:
    """The authors' loop over heads, before the output projection: z_h <- (1 + A_h) * z_h, or z_h <- z_h + v_h."""
    for part, vector_HC in zip(projections(model), vectors, strict=True):

        def change(_: nn.Module, args: tuple[Tensor], vector_HC: Tensor = vector_HC) -> tuple[Tensor]:
            parts = args[0].split(vector_HC.shape[1], dim=-1)
            assert len(parts) == len(vector_HC)
            if rule == "scale":
                return (torch.cat([(1 + a_C) * z for a_C, z in zip(vector_HC, parts, strict=True)], -1),)
            return (torch.cat([z + v_C for v_C, z in zip(vector_HC, parts, strict=True)], -1),)

        model.module.get_submodule(part.path).register_forward_pre_hook(change)


@pytest.mark.parametrize("family", FAMILIES)
def test_scaling_and_offset_are_the_authors_loop_over_heads(family: str) -> None:
    model, other = tiny(family), tiny(family)
    tuning = lofit(model)
    moved(tuning)
    apply_naively(other, [each.vector_HC.detach().clone() for each in tuning.heads], "scale")
    # One float32 product each; what differs is the order of sums behind it.
    torch.testing.assert_close(outputs(model), outputs(other), atol=1e-5, rtol=1e-5)

    other = tiny(family)
    base = outputs(other)
    tuning.choose(["0.1", "1.3"])
    assert torch.equal(outputs(model), base), "scalings are let go, offsets start at 0"
    moved(tuning)
    wanted = [torch.zeros_like(each.vector_HC) for each in tuning.heads]
    for block, head in ((0, 1), (1, 3)):
        wanted[block][head] = tuning.heads[block].vector_HC.detach()[head]
    apply_naively(other, wanted, "shift")
    torch.testing.assert_close(outputs(model), outputs(other), atol=1e-5, rtol=1e-5)
    assert float((outputs(model) - base).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_fold_into_biases_and_come_off_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    base, names = outputs(model), dict(model.module.named_parameters())
    fingerprint = fingerprint_module(model.module, model.tokenizer)
    tuning = lofit(model, heads=["0.0", "0.3"])
    moved(tuning)
    attached = outputs(model)
    tuning.save(tmp_path)
    tuning.detach()
    assert torch.equal(outputs(model), base)

    delta = read_delta(tmp_path / "delta")
    assert isinstance(delta, DenseDelta)
    part = projections(model)[0]
    assert delta.names() == [f"{part.path}.bias"], "a block without chosen heads has no change"
    weight = model.module.get_submodule(part.path).weight.detach()
    weight_DI = weight.T if part.is_transposed else weight
    offset_HC = torch.zeros_like(tuning.heads[0].vector_HC)
    offset_HC[[0, 3]] = tuning.heads[0].vector_HC.detach()[[0, 3]]
    # The same product of some sixty float32 numbers.
    torch.testing.assert_close(delta.update(delta.names()[0]), weight_DI @ offset_HC.flatten(), atol=1e-6, rtol=1e-6)

    applied = delta.apply(model)
    # The offset's product is added to the projection's instead of going through it: rounding of float32 sums.
    torch.testing.assert_close(outputs(model), attached, atol=2e-5, rtol=1e-5)
    applied.undo()
    assert torch.equal(outputs(model), base)
    assert dict(model.module.named_parameters()).keys() == names.keys()
    assert fingerprint_module(model.module, model.tokenizer) == fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_loads_in_transformers_or_is_refused(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    tuning = lofit(model, heads=["1.2"])
    moved(tuning)
    tuning.merge()
    if family not in DESCRIBED:
        with pytest.raises(ModelError, match=r"is no parameter of a .* by its configuration"):
            save_model(model, tmp_path)
        return
    save_model(model, tmp_path)
    assert torch.equal(outputs(load_model(tmp_path)), outputs(model))
    assert fingerprint_folder(tmp_path) == fingerprint_module(model.module, model.tokenizer)
    tokens = torch.tensor([[1, 5, 9, 44, 7, 3, 60, 12]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        # Temper's norms take their sums in another order.
        torch.testing.assert_close(theirs(tokens).logits, model.module(tokens).logits, atol=1e-4, rtol=1e-4)


def test_only_the_chosen_heads_have_a_gradient() -> None:
    model = tiny("llama")
    tuning = lofit(model, heads=["1.1"])
    moved(tuning)
    model.module(torch.arange(4, 40)[None]).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.module.parameters())
    first, second = tuning.heads
    assert first.vector_HC.grad is None and second.vector_HC.grad is not None
    lengths_H = second.vector_HC.grad.norm(dim=1)
    assert lengths_H[1] > 0 and (lengths_H[[0, 2, 3]] == 0).all()


def test_the_search_ends_with_the_largest_scalings_and_a_fresh_optimizer(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, tune={"lofit": {"share": 0.4, "search": 0.5}}, num_steps=8)
    tuning = loop.tuning
    assert isinstance(tuning, LoFiTTuning)
    seen: list[tuple[tuple[str, ...], list[str], set[float]]] = []

    def look(_: object) -> None:
        steps = {float(state["step"]) for state in loop.optimizer.state.values()}
        seen.append((tuning.chosen, tuning.largest(), steps))

    loop.on_step = look
    loop.run()
    chosen = [heads for heads, _, _ in seen]
    assert chosen[:4] == [()] * 4 and len(set(chosen[4:])) == 1
    assert sorted(seen[3][1]) == sorted(chosen[4]) and len(chosen[4]) == 3, "40 % of 8 heads, by norm"
    assert [steps for _, _, steps in seen] == [{1}, {2}, {3}, {4}, {1}, {2}, {3}, {4}]
    for each in tuning.heads:
        assert each.is_chosen_H is not None
        assert (each.vector_HC[~each.is_chosen_H] == 0).all() and (each.vector_HC[each.is_chosen_H] != 0).all()


def test_the_penalty_is_the_sum_of_sizes_while_heads_are_found() -> None:
    tuning = lofit(tiny("llama"), sparsity=0.5)
    moved(tuning)
    penalty = tuning.penalty()
    assert penalty is not None
    wanted = 0.5 * sum(float(vector.detach().abs().sum()) for _, vector in tuning.parameters())
    assert float(penalty.detach()) == pytest.approx(wanted, rel=1e-5)
    tuning.choose(["0.0"])
    assert tuning.penalty() is None


@pytest.mark.parametrize("stopped_at", [2, 5])
def test_resumed_is_uninterrupted_in_either_phase(stopped_at: int, tmp_path: Path) -> None:
    tune = {"lofit": {"share": 0.25, "search": 0.5}}
    whole = trained(make_loop(tmp_path / "whole", tune=tune))

    class Stop(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == stopped_at:
            raise Stop

    first = make_loop(tmp_path / "parts", tune=tune, checkpoint_steps=1)
    first.on_step = stop
    with pytest.raises(Stop):
        first.run()
    # The step at which it was stopped was not yet kept: it is made again.
    again = trained(make_loop(tmp_path / "parts", tune=tune, checkpoint_steps=1))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(("planted", "other"), [("0.2", "1.2"), ("1.0", "0.0")])
def test_the_head_that_matters_is_found_and_another_does_not_do(planted: str, other: str, tmp_path: Path) -> None:
    """All heads but one reach the residual stream at a two-hundredth: the search finds it, and any other helps less."""

    def model() -> Model:
        made = tiny("llama")
        with torch.no_grad():
            for part in projections(made):
                weight = made.module.get_submodule(part.path).weight.view(part.out_features, 4, -1)
                for head in range(4):
                    weight[:, head] *= 1.0 if f"{part.block}.{head}" == planted else 0.005
        return made

    def losses(settings: dict[str, Any], folder: str) -> tuple[list[float], tuple[str, ...]]:
        loop = make_loop(
            tmp_path / folder, model(), made=examples((24,) * 8), tune={"lofit": settings}, num_steps=24, batch_size=8,
            lr=3e-2,
        )  # fmt: skip
        seen: list[float] = []
        loop.on_step = lambda metrics: seen.append(metrics["loss"])
        loop.run()
        assert isinstance(loop.tuning, LoFiTTuning)
        return seen, loop.tuning.chosen

    _, chosen = losses({"share": 0.125}, "found")
    assert chosen == (planted,)
    given, _ = losses({"heads": [planted]}, "given")
    control, _ = losses({"heads": [other]}, "control")
    # An optimizer of Adam's kind moves any offset as fast, but this one's way into the model is narrow.
    assert given[0] - given[-1] > 5 * abs(control[0] - control[-1])


def test_changes_with_and_without_biases_merge_and_add(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, "llama")
    model = tiny("llama")
    tuning = lofit(model, heads=["0.1", "1.2"])
    moved(tuning)
    delta = tuning.delta()
    tuning.detach()
    run.finish("offsets", delta)
    run.finish("whole", tiny("llama", seed=1))
    Stage.parse({"merge": {"method": {"linear": {"weights": [0.5, 0.25]}}, "of": ["offsets", "whole"]}}).run(
        run, "base"
    )
    merged = load_model(run.folder / "model").module
    base, whole = run.load("base").module, run.load("whole").module
    for name, value in merged.named_parameters():
        if name in delta.names():
            wanted = 0.5 * delta.update(name)
        elif name.endswith(".bias"):
            wanted = torch.zeros_like(value)
        else:
            first, second = base.get_parameter(name).detach(), whole.get_parameter(name).detach()
            wanted = first + 0.25 * (second - first)
        torch.testing.assert_close(value.detach(), wanted, atol=2e-6, rtol=1e-6)
    folded = tiny("llama")
    delta.apply(folded)
    between = DenseDelta.between(folded, tiny("llama"))
    assert set(between.names()) == set(delta.names())
    assert all(torch.equal(between.update(name), delta.update(name)) for name in delta.names())
    twice = tiny("llama")
    add(delta, between).apply(twice)
    name = delta.names()[0]
    assert torch.equal(twice.module.get_parameter(name).detach(), 2 * delta.update(name))
    with pytest.raises(SettingError, match="is dense, not low-rank"):
        Stage.parse({"export": {"from": "offsets", "as": "adapter"}}).run(run, "base")


def test_given_biases_compute_the_same_and_others_are_left_alone() -> None:
    for family in FAMILIES:
        model = tiny(family)
        base, before = outputs(model), {name for name, _ in model.module.named_parameters()}
        given = give_biases(model.module, [f"{part.path}.bias" for part in model.anatomy.parts("o", "down")])
        assert torch.equal(outputs(model), base)
        assert all((model.module.get_parameter(name) == 0).all() for name in given.names)
        take_biases(model.module, given)
        assert {name for name, _ in model.module.named_parameters()} == before
    llama = tiny("llama").module
    assert give_biases(llama, ["model.norm.bias", "model.layers.9.self_attn.o_proj.bias", "lm_head.weight"]).names == []


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"tune\.lofit\.heads: '0\.4' is no head of this model"):
        lofit(tiny("llama"), heads=["0.4"])
    with pytest.raises(ModelError, match="no such parameter"):
        DenseDelta({"model.layers.0.self_attn.o_proj.biases": torch.zeros(48)}).apply(tiny("llama"))
    with pytest.raises(ModelError, match="has shape"):
        DenseDelta({"model.layers.0.self_attn.o_proj.bias": torch.zeros(47)}).apply(tiny("llama"))
    made = examples(tuple(range(3, 23)))
    loop = make_loop(tmp_path, made=made, tune={"lofit": {"search": 0.9}}, num_steps=6, lr=1e3)
    loop.validation = Validation(to_batches(made, 64), every_steps=2)
    with pytest.raises(TrainingError, match=r"tune\.lofit\.search: 0\.9"):
        loop.run()


def test_a_validation_while_heads_are_found_is_neither_the_best_nor_a_failure(tmp_path: Path) -> None:
    """The scalings learn at once, and letting them go undoes it: of all steps that are validated step 2 is the best."""
    made = examples(tuple(range(3, 23)))
    losses: dict[int, float] = {}
    settings: dict[str, Any] = {"tune": {"lofit": {"search": 0.5, "sparsity": 0.0}}, "num_steps": 8, "lr": 0.1}
    loop = make_loop(
        tmp_path,
        made=made,
        on_step=lambda metrics: losses.update({int(metrics["step"]): metrics.get("validation_loss", 9e9)}),
        **settings,
    )
    loop.validation = Validation(to_batches(made, 64), every_steps=1, patience=3)
    totals = loop.run()
    assert min(losses, key=losses.__getitem__) <= 4, "the control: the search's own best is better"
    assert totals["best_step"] > 4 and totals["best_validation_loss"] == min(
        losses[step] for step in losses if step > 4
    )
    assert isinstance(loop.tuning, LoFiTTuning) and loop.tuning.chosen


def test_before_the_heads_are_found_the_scalings_are_the_change(tmp_path: Path) -> None:
    model = tiny("gpt2")
    tuning = lofit(model)
    tuning.before_step(Moment(3, 0.4))
    assert tuning.take_change() is None
    moved(tuning)
    attached = outputs(model)
    tuning.save(tmp_path)
    again = tiny("gpt2")
    read_delta(tmp_path / "delta").apply(again)
    torch.testing.assert_close(outputs(again), attached, atol=2e-5, rtol=1e-5)
    assert not any(name.endswith(".bias") for name in read_delta(tmp_path / "delta").names())


def test_heads_that_yaml_reads_as_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads: 3.1 is a number, and 3.1 is the same as 3.10; quote it: '3.1'"):
        Tune.parse({"lofit": {"heads": [3.10]}})
    assert Tune.parse({"lofit": {"heads": ["3.10"]}}).written()["lofit"]["heads"] == ["3.10"]
