"""What every kind of delta keeps, on every family: saved = loaded, undone = base bit for bit, applied = its sum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deltas import KINDS, PROVENANCE, assert_same_bits, make_dense, make_low_rank, values
from families import FAMILIES, tiny
from temper.core.errors import ModelError
from temper.delta import Delta, DenseDelta, Factors, LowRankDelta, Provenance, add, read_delta, spread, subtract
from temper.delta import base as base_file
from temper.delta.base import delta_kinds, write_provenance

every = pytest.mark.parametrize(("family", "kind"), [(f, k) for f in FAMILIES for k in KINDS])


def test_every_kind_is_tested() -> None:
    # What is attached has no weights to be compared; it is tested with the tuner that makes it.
    of_weights = {name for name, kind in delta_kinds().items() if not kind.is_attached}
    assert of_weights == set(KINDS)


@every
def test_saved_and_loaded_is_saved(family: str, kind: str, tmp_path: Path) -> None:
    delta = KINDS[kind](tiny(family))
    delta.save(tmp_path / "delta")
    loaded = read_delta(tmp_path / "delta")
    assert type(loaded) is type(delta)
    assert sorted(loaded.names()) == sorted(delta.names())
    assert loaded.provenance == PROVENANCE
    assert loaded.num_values == delta.num_values
    for name in delta.names():
        # A scaling passes through alpha = scaling * rank, one rounding of a double: float32 sees nothing of it.
        assert torch.equal(loaded.update(name), delta.update(name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_stays_when_its_folder_is_written_again(kind: str, tmp_path: Path) -> None:
    model = tiny("llama")
    KINDS[kind](model, seed=1).save(tmp_path)
    loaded = read_delta(tmp_path)
    KINDS[kind](model, seed=2).save(tmp_path)
    for name in loaded.names():
        assert torch.equal(loaded.update(name), KINDS[kind](model, seed=1).update(name)), name
        assert torch.equal(read_delta(tmp_path).update(name), KINDS[kind](model, seed=2).update(name)), name


@every
def test_applied_is_base_plus_update_and_undone_is_base_bit_for_bit(family: str, kind: str) -> None:
    model = tiny(family)
    delta = KINDS[kind](model)
    before = values(model.module)
    pointers = {name: parameter.data_ptr() for name, parameter in model.module.named_parameters(remove_duplicate=False)}

    undo = delta.apply(model)
    after = values(model.module)
    for name in delta.names():
        assert torch.equal(after[name], before[name] + delta.update(name)), name
        assert not torch.equal(after[name], before[name]), name
    tied = {pointers[name] for name in delta.names()}
    for name, pointer in pointers.items():
        assert dict(model.module.named_parameters(remove_duplicate=False))[name].data_ptr() == pointer
        if pointer not in tied:
            assert torch.equal(after[name], before[name]), name

    undo.undo()
    assert_same_bits(values(model.module), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_low_rank_delta_in_the_weights_is_the_same_delta_beside_them(family: str) -> None:
    model = tiny(family)
    delta = make_low_rank(model)
    tokens = torch.tensor([[1, 5, 9, 44, 7, 3, 60]])
    handles = []
    for path, factors in delta.factors.items():

        def beside(_: nn.Module, inputs: tuple[Tensor], output: Tensor, factors: Factors = factors) -> Tensor:
            return output + (inputs[0] @ factors.a_RI.T @ factors.b_OR.T) * factors.scaling

        handles.append(model.module.get_submodule(path).register_forward_hook(beside))
    with torch.no_grad():
        expected = model.module(input_ids=tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        base = model.module(input_ids=tokens, use_cache=False).logits
        delta.apply(model)
        merged = model.module(input_ids=tokens, use_cache=False).logits
    assert (expected - base).abs().max() > 0.05
    # Two blocks of float32 products in another order.
    torch.testing.assert_close(merged, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_are_rounded_once_from_float32(kind: str) -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    delta = KINDS[kind](model)
    before = values(model.module)
    undo = delta.apply(model)
    for name, value in values(model.module).items():
        expected = before[name]
        if name in delta.names():
            expected = (expected.float() + delta.update(name)).to(torch.bfloat16)
        assert torch.equal(value, expected), name
    undo.undo()
    assert_same_bits(values(model.module), before)


@pytest.mark.parametrize("kind", KINDS)
def test_algebra_is_linear(kind: str) -> None:
    model = tiny("phi3")
    first, second = KINDS[kind](model, 1), KINDS[kind](model, 2)
    total, difference, triple = add(first, second), subtract(first, second), first.scale(3.0)
    assert type(total) is type(triple) is type(first.plain())
    for name in first.names():
        one, two = first.update(name), second.update(name)
        # float32 sums in another order, of values up to about 5
        torch.testing.assert_close(total.update(name), one + two, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(difference.update(name), one - two, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(triple.update(name), 3 * one, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(subtract(total, second).update(name), one, atol=1e-5, rtol=1e-5)


def test_low_rank_ones_add_by_stacking_ranks() -> None:
    model = tiny("llama")
    total = add(make_low_rank(model, 1), make_low_rank(model, 2).scale(0.5))
    assert isinstance(total, LowRankDelta)
    assert {factors.rank for factors in total.factors.values()} == {4, 6, 8}


def test_mixed_kinds_add_densely() -> None:
    model = tiny("gpt2")
    dense, low_rank = make_dense(model), make_low_rank(model)
    total = add(dense, low_rank)
    assert isinstance(total, DenseDelta)
    assert set(total.names()) == set(dense.names()) | set(low_rank.names())
    for name in total.names():
        parts = [delta.update(name) for delta in (dense, low_rank) if name in delta.names()]
        assert torch.equal(total.update(name), sum(parts[1:], parts[0]))


def test_a_slice_of_a_fused_module_changes_its_rows_only() -> None:
    model = tiny("gpt_neox")
    part = next(model.anatomy.parts("k"))
    assert part.rows is not None and len(part.rows) > 1
    weight = model.module.get_submodule(part.path).weight
    small = Factors(torch.randn(2, part.in_features), torch.randn(part.out_features, 2))
    change = spread(small, part.rows, len(weight)).product()
    rows = torch.cat([torch.arange(start, stop) for start, stop in part.rows])
    assert torch.equal(change[rows], small.product())
    change[rows] = 0
    assert not change.any()


def test_the_change_of_a_tied_weight_touches_one_tensor() -> None:
    model = tiny("qwen2")
    assert model.anatomy.is_tied
    head, embedding = (model.module.get_submodule(path) for path in (model.anatomy.head, model.anatomy.embedding))
    change = torch.full_like(head.weight, 0.5)
    before = head.weight.detach().clone()
    undo = DenseDelta({f"{model.anatomy.head}.weight": change}).apply(model)
    assert head.weight is embedding.weight
    assert torch.equal(embedding.weight, before + change)
    undo.undo()
    assert torch.equal(embedding.weight, before)

    both = DenseDelta({f"{model.anatomy.head}.weight": change, f"{model.anatomy.embedding}.weight": change})
    with pytest.raises(ModelError, match="same weight as lm_head"):
        both.apply(model)
    assert torch.equal(embedding.weight, before)
    low_rank = LowRankDelta({model.anatomy.head: Factors(torch.ones(1, 48), torch.ones(97, 1))})
    with pytest.raises(ModelError, match="lm_head: its weight is tied"):
        low_rank.apply(model)


def test_what_does_not_fit_leaves_the_model_alone() -> None:
    model = tiny("llama")
    before = values(model.module)
    good = "model.layers.0.self_attn.q_proj.weight"
    for changes, message in [
        ({good: torch.ones(48, 48), "model.norm.weight": torch.ones(5)}, r"model\.norm\.weight.*\(5,\).*\(48,\)"),
        ({good: torch.ones(48, 48), "model.norms.weight": torch.ones(48)}, r"did you mean 'model\.norm\.weight'"),
    ]:
        with pytest.raises(ModelError, match=message):
            DenseDelta(changes).apply(model)
    missing = LowRankDelta({"model.layers.0.self_attn.query": Factors(torch.ones(1, 48), torch.ones(48, 1))})
    with pytest.raises(ModelError, match=r"self_attn\.query.*no such module"):
        missing.apply(model)
    embedding = LowRankDelta({"model.embed_tokens": Factors(torch.ones(1, 48), torch.ones(97, 1))})
    with pytest.raises(ModelError, match="Embedding"):
        embedding.apply(model)
    assert_same_bits(values(model.module), before)


def test_without_keeping_nothing_can_be_undone() -> None:
    model = tiny("llama")
    with pytest.raises(ModelError, match="keep=False"):
        make_dense(model).apply(model, keep=False).undo()


def test_provenance_can_be_added_and_a_strange_folder_is_refused(tmp_path: Path) -> None:
    delta = LowRankDelta({"a": Factors(torch.ones(1, 2), torch.ones(3, 1))})
    delta.save(tmp_path)
    write_provenance(tmp_path, PROVENANCE)
    assert read_delta(tmp_path).provenance == PROVENANCE
    with pytest.raises(ModelError, match="low_rank delta, not a dense one"):
        DenseDelta.load(tmp_path)
    (tmp_path / "temper.json").write_text('{"kind": "low_rnk", "provenance": {}}')
    with pytest.raises(ModelError, match="did you mean 'low_rank'"):
        read_delta(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="neither"):
        read_delta(tmp_path / "empty")


def test_a_kind_is_added_by_subclassing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new kind needs no other file: it registers itself, and `read_delta` finds it."""
    monkeypatch.setattr(base_file, "_kinds", dict(delta_kinds()))

    class One(Delta, kind="one"):
        provenance = PROVENANCE
        num_values = 1

        def names(self) -> list[str]:
            return ["w"]

        def update(self, name: str, like: Tensor | None = None) -> Tensor:
            return torch.ones(2)

        def scale(self, factor: float) -> Delta:
            return self

        def write(self, folder: Path) -> None:
            (folder / "one").touch()

        @classmethod
        def read(cls, folder: Path, provenance: Provenance | None) -> One:
            assert (folder / "one").is_file() and provenance == PROVENANCE
            return cls()

    One().save(tmp_path)
    assert type(read_delta(tmp_path)) is One
    total = add(One(), One())
    assert torch.equal(total.update("w"), torch.tensor([2.0, 2.0]))
