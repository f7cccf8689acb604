"""Methods that train a sparse set of entries: the primitive, LIFT and SpIEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from families import FAMILIES, tiny
from temper.core.schedule import Moment
from temper.delta.sparse import SparseDelta
from temper.models.anatomy import part_weight
from temper.models.model import Model
from temper.optim.base import Optim
from temper.tune.entries import EntriesTuning
from temper.tune.lift import LIFT, LIFTTuning
from temper.tune.spiel import GrowingEntries, SpIEL, SpIELTuning
from training import attach, make_loop, moved, outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_dense_one_at_the_active_entries(family: str) -> None:
    """Against autograd through the module's own weight, on fused and transposed ones too."""
    model, dense = tiny(family), tiny(family)
    tuning = attach({"lift": {"density": 0.1}}, model)
    assert isinstance(tuning, LIFTTuning)
    dense.module.requires_grad_(True)
    tokens = torch.arange(4, 40)[None]
    for module in (model.module, dense.module):
        module(tokens).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.module.parameters())
    for each in tuning.entries:
        weight = dense.module.get_submodule(each.part.path).weight
        whole = dense.module.get_submodule(each.part.path).weight.grad
        assert weight.shape == whole.shape and each.delta_K.grad is not None
        expected = whole.flatten()[each.stored(each.index_K)]
        torch.testing.assert_close(each.delta_K.grad, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(each.stored(each.index_K).unique(), each.stored(each.index_K).sort().values)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("lay_down", [True, False])
def test_moved_entries_and_the_delta_stay_one(family: str, lay_down: bool) -> None:
    """Through several moves: base + delta = the weight, kept or reverted as asked, and detached = base bit for bit."""
    model = tiny(family)
    base = {name: value.clone() for name, value in model.module.state_dict().items()}
    tuning = attach({"lift": {"density": 0.2}}, model)
    assert isinstance(tuning, LIFTTuning)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        moved(tuning)
        for each in tuning.entries:
            old, values = each.index_K, each.delta_K.detach().clone()
            size = each.part.in_features * each.part.out_features
            new = torch.randperm(size, generator=generator)[: len(old)]
            each.move(new, lay_down)
            assert each.origin_K is not None
            stays = each.origin_K >= 0
            assert torch.equal(old[each.origin_K[stays]], each.index_K[stays])
            assert torch.equal(values[each.origin_K[stays]], each.delta_K.detach()[stays])
    outputs(model)
    delta = tuning.delta()
    for name, value in model.module.state_dict().items():
        expected = base[name]
        if name in delta.names():
            expected = expected + delta.update(name)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    active = sum(len(each.index_K) for each in tuning.entries)
    assert (delta.num_values > 1.5 * active) == lay_down
    tuning.detach()
    assert all(torch.equal(model.module.state_dict()[name], value) for name, value in base.items())


def test_lift_is_the_papers_mask() -> None:
    model = tiny("llama")
    weights = {part: part_weight(model.module, part).detach().clone() for part in model.anatomy.parts()}
    tuning = LIFT(density=0.05, rank=4, svd="exact").attach(model)
    for each in tuning.entries:
        u, s, vh = torch.linalg.svd(weights[each.part])
        low = u[:, :4] @ torch.diag(s[:4]) @ vh[:4]
        count = round(0.05 * low.numel())
        threshold = low.abs().flatten().sort(descending=True).values[count - 1]
        assert set(each.index_K.tolist()) == set(torch.nonzero(low.abs().flatten() >= threshold)[:, 0].tolist())
    random = LIFT(density=0.05, rank=4).attach(tiny("llama"))
    magnitude = overlap = total = 0
    for ours, exact in zip(random.entries, tuning.entries, strict=True):
        found = set(exact.index_K.tolist())
        overlap += len(found & set(ours.index_K.tolist()))
        largest = weights[exact.part].abs().flatten().topk(len(found)).indices
        magnitude += len(found & set(largest.tolist()))
        total += len(found)
    # A random matrix has no gap in its spectrum: the hardest case for a randomised decomposition.
    assert overlap > 0.7 * total > 1.1 * magnitude, "plain size is another mask"


def adam_state(tuning: EntriesTuning, loop_state: dict[torch.Tensor, dict[str, torch.Tensor]]) -> dict[int, float]:
    each = tuning.entries[0]
    return dict(zip(each.index_K.tolist(), loop_state[each.delta_K]["exp_avg_sq"].tolist(), strict=True))


def test_state_goes_with_the_entries_that_stay(tmp_path: Path) -> None:
    model, seen = tiny("llama"), []

    def look(metrics: dict[str, float]) -> None:
        tuning = loop.tuning
        assert isinstance(tuning, LIFTTuning)
        seen.append(adam_state(tuning, loop.optimizer.state))

    # A large step, so that other entries become principal.
    tune = {"lift": {"density": 0.1, "rank": 4, "every_steps": 3, "svd": "exact"}}
    loop = make_loop(tmp_path, model, tune=tune, num_steps=4, lr=0.1, on_step=look)
    loop.run()
    before, after = seen[2], seen[3]
    stayed, new = before.keys() & after.keys(), after.keys() - before.keys()
    assert stayed and new
    # v' = 0.999 v + 0.001 g^2 of what was there, and 0.001 g^2 alone of what is new.
    assert all(after[place] >= 0.998 * before[place] for place in stayed)
    assert sum(after[place] for place in new) / len(new) < 0.6 * sum(after[place] for place in stayed) / len(stayed)


def planted(model: Model, tune: str, regrow: str, tmp_path: Path) -> SpIELTuning:
    loop = make_loop(
        tmp_path / regrow,
        model,
        tune={tune: {"density": 0.05, "regrow": regrow, "every_steps": 6, "gather_steps": 3, "targets": ["0.down"]}},
        num_steps=20,
        lr=1e-2,
    )
    loop.run()
    assert isinstance(loop.tuning, SpIELTuning)
    return loop.tuning


@pytest.mark.parametrize("regrow", ["ag", "ma"])
def test_spiel_keeps_its_size_and_its_base(tmp_path: Path, regrow: str) -> None:
    model = tiny("llama")
    base = {name: value.clone() for name, value in model.module.state_dict().items()}
    tuning = planted(model, "spiel", regrow, tmp_path)
    (each,) = tuning.entries
    assert len(each.index_K.unique()) == round(0.05 * 48 * 72)
    delta = tuning.delta()
    assert delta.num_values <= len(each.index_K), "what was dropped went back to the base"
    tuning.detach()
    assert all(torch.equal(model.module.state_dict()[name], value) for name, value in base.items())


def test_spiel_ag_grows_where_the_gradient_is(tmp_path: Path) -> None:
    """The authors' rule, written naively over one reselection."""
    model = tiny("llama")
    tuning = SpIEL(density=0.02, every_steps=9, gather_steps=3, targets=("0.down",)).attach(model)
    (each,) = tuning.growing
    assert isinstance(each, GrowingEntries)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(48, 72, generator=generator) for _ in range(6)]
    for step in range(3):
        tuning.before_step(Moment(step, 0.0))
        for gradient in gradients[2 * step : 2 * step + 2]:  # two micro-batches a step
            each.see(gradient)
        tuning.after_step(Moment(step, 0.0))
    count = len(each.index_K)
    first = (gradients[0] + gradients[1]).flatten()
    candidates = first.abs().topk(count).indices
    total = sum(gradients[1:], gradients[0]).flatten()
    expected = set(candidates.tolist())
    tuning.before_step(Moment(3, 0.0))
    assert set(each.index_K.tolist()) == expected, "the first time, all are chosen anew"
    with torch.no_grad():
        each.delta_K.copy_(torch.randn(count, generator=generator))
    values = dict(zip(each.index_K.tolist(), each.delta_K.tolist(), strict=True))
    each.candidate_J, each.gradient_J = torch.arange(count), total[:count]
    each.reselect("ag", 0.25)
    num = int(0.25 * count)
    dropped = sorted(values, key=lambda place: abs(values[place]))[:num]
    kept = values.keys() - set(dropped)
    free = [place for place in range(count) if place not in kept]
    grown = sorted(free, key=lambda place: -abs(float(total[place])))[:num]
    assert set(each.index_K.tolist()) == kept | set(grown)
    for place, value in zip(each.index_K.tolist(), each.delta_K.tolist(), strict=True):
        assert value == (values[place] if place in values and (place in kept or place in dropped) else 0.0)


def test_spiel_ma_holds_sm3s_accumulators() -> None:
    model = tiny("llama")
    tuning = SpIEL(density=0.02, regrow="ma", targets=("0.down",)).attach(model)
    (each,) = tuning.growing
    rows, columns = torch.zeros(48), torch.zeros(72)
    for seed in range(3):
        gradient = torch.randn(len(each.index_K), generator=torch.Generator().manual_seed(seed))
        each.delta_K.grad = gradient
        tuning.before_update(Moment(seed, 0.0))
        new_rows, new_columns = torch.zeros(48), torch.zeros(72)
        for place, value in zip(each.index_K.tolist(), gradient.tolist(), strict=True):
            i, j = divmod(place, 72)
            nu = min(float(rows[i]), float(columns[j])) + value**2
            new_rows[i], new_columns[j] = max(float(new_rows[i]), nu), max(float(new_columns[j]), nu)
        rows, columns = torch.maximum(rows, new_rows), torch.maximum(columns, new_columns)
    torch.testing.assert_close(each.row_O, rows)
    torch.testing.assert_close(each.column_I, columns)
    old = set(each.index_K.tolist())
    count = int(0.5 * len(old))
    scores = torch.outer(rows, columns).flatten()
    free = sorted((p for p in range(48 * 72) if p not in old), key=lambda p: -float(scores[p]))
    each.reselect("ma", 0.5)
    grown = set(each.index_K.tolist()) - old
    assert len(grown) == count
    assert min(float(scores[p]) for p in grown) >= float(scores[free[count - 1]])


def test_memory_and_disk_are_those_of_the_active_entries(tmp_path: Path) -> None:
    loop = make_loop(tmp_path / "lift", tune={"lift": {"density": 0.05}}, num_steps=2)
    loop.run()
    full = make_loop(tmp_path / "full", num_steps=2)
    full.run()

    def held(optimizer: torch.optim.Optimizer) -> int:
        return sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.ndim)

    tuning = loop.tuning
    assert isinstance(tuning, EntriesTuning)
    active = sum(len(each.index_K) for each in tuning.entries)
    size = sum(each.part.in_features * each.part.out_features for each in tuning.entries)
    assert held(loop.optimizer) == 2 * active and abs(active - 0.05 * size) <= len(tuning.entries)
    assert held(full.optimizer) > 15 * held(loop.optimizer)
    tuning.save(tmp_path)
    delta = SparseDelta.load(tmp_path / "delta")
    file = tmp_path / "delta" / "sparse.safetensors"
    assert file.stat().st_size < 8 * delta.num_values + 8000, "four bytes for a place, four for a value, and names"


def test_gathering_longer_than_a_period_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"tune\.spiel\.gather_steps: 20 is not less than every_steps"):
        SpIEL(gather_steps=20)


@pytest.mark.parametrize("tune", ["lift", "spiel"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "galore"])
def test_decay_pulls_entries_to_the_base(tune: str, optimizer: str) -> None:
    """Without a gradient a step takes lr times the decay off each change: an entry is a matrix's number, no norm's."""
    model = tiny("llama")
    tuning = attach({tune: {"density": 0.1}}, model)
    moved(tuning)
    lr, decay, num_steps = 0.1, 0.5, 3
    settings: dict[str, Any] = {"adamw": {"weight_decay": decay}}
    written = {"galore": {"inner": settings}} if optimizer == "galore" else {optimizer: {"weight_decay": decay}}
    named = list(tuning.parameters())
    norm = nn.Parameter(torch.ones(5))
    before = {name: parameter.detach().clone() for name, parameter in named}
    stepping = Optim.parse(written).build([*named, ("norm", norm)], lr)
    for _ in range(num_steps):
        for parameter in (*(parameter for _, parameter in named), norm):
            parameter.grad = torch.zeros_like(parameter)
        stepping.step()
    for name, parameter in named:
        assert before[name].abs().sum() > 0
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - lr * decay) ** num_steps)
    assert torch.equal(norm.detach(), torch.ones(5)), "a vector that is one stays"
