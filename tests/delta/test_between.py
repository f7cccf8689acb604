"""The difference of two models, from memory and from folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES, tiny
from temper.core.errors import ModelError
from temper.delta import DenseDelta, read_delta
from temper.delta import dense as dense_file
from temper.models.load import load_model, save_model
from temper.models.model import Model


def tuned_copy(family: str) -> tuple[Model, Model, set[str]]:
    base, tuned = tiny(family), tiny(family)
    changed = set()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(tuned.module.named_parameters()):
            if index % 3 == 0:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)), alpha=0.1)
                changed.add(name)
    return base, tuned, changed


@pytest.mark.parametrize("family", FAMILIES)
def test_base_plus_difference_is_tuned(family: str, tmp_path: Path) -> None:
    base, tuned, changed = tuned_copy(family)
    save_model(base, tmp_path / "base")
    save_model(tuned, tmp_path / "tuned")
    by_folder = DenseDelta.between(tmp_path / "tuned", tmp_path / "base")
    by_module = DenseDelta.between(tuned, base)
    mixed = DenseDelta.between(tuned.module, tmp_path / "base")
    assert by_module.provenance.base_fingerprint == base.fingerprint
    for delta in (by_folder, by_module, mixed):
        assert set(delta.names()) == changed
        assert delta.num_values == sum(tuned.module.get_parameter(name).numel() for name in changed)
    by_folder.apply(base)
    for name, parameter in base.module.named_parameters():
        # b + (t - b) rounds twice in float32
        torch.testing.assert_close(parameter, tuned.module.get_parameter(name), atol=1e-6, rtol=0)
        if name in changed:
            assert torch.equal(by_folder.update(name), by_module.update(name))


def test_bfloat16_models_differ_to_the_rounding_of_float32(tmp_path: Path) -> None:
    base, tuned = tiny("llama", dtype=torch.bfloat16), tiny("llama", seed=1, dtype=torch.bfloat16)
    DenseDelta.between(tuned, base).save(tmp_path)
    read_delta(tmp_path).apply(base)
    for name, parameter in base.module.named_parameters():
        # t - b in float32 is off by at most 2^-24 of |b| < 1, which may tip the rounding to bfloat16 once (2^-8).
        torch.testing.assert_close(parameter, tuned.module.get_parameter(name), atol=1e-7, rtol=2**-8)


def test_a_difference_stays_when_the_models_in_memory_change() -> None:
    base, tuned, changed = tuned_copy("llama")
    delta = DenseDelta.between(tuned, base)
    before = {name: delta.update(name) for name in changed}
    delta.apply(base)
    assert all(torch.equal(delta.update(name), before[name]) for name in changed)


def test_a_folder_with_other_names_is_loaded_as_transformers_does(tmp_path: Path) -> None:
    """Hub checkpoints of GPT-2 leave out the prefix `transformer.`."""
    base, tuned, changed = tuned_copy("gpt2")
    save_model(base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    assert "wte.weight" in renamed
    save_file(renamed, file, metadata={"format": "pt"})
    assert load_model(tmp_path / "base").module.get_parameter("transformer.wte.weight").shape == (97, 48)
    delta = DenseDelta.between(tuned, tmp_path / "base")
    assert set(delta.names()) == changed


def test_a_delta_is_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, changed = tuned_copy("llama")
    monkeypatch.setattr(dense_file, "SHARD_BYTES", 20_000)
    delta = DenseDelta.between(tuned, base)
    delta.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = read_delta(tmp_path)
    assert set(loaded.names()) == changed
    assert all(torch.equal(loaded.update(name), delta.update(name)) for name in changed)
    monkeypatch.undo()
    delta.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_equal_models_differ_in_nothing(tmp_path: Path) -> None:
    delta = DenseDelta.between(tiny("llama"), tiny("llama"))
    assert list(delta.names()) == [] and delta.num_values == 0
    delta.save(tmp_path)
    assert list(read_delta(tmp_path).names()) == []
    assert json.loads((tmp_path / "temper.json").read_text())["kind"] == "dense"


def test_models_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ModelError, match=r"embed_tokens\.weight.*\(99, 48\).*\(97, 48\)"):
        DenseDelta.between(tiny("llama", vocab_size=99), tiny("llama"))
    with pytest.raises(ModelError, match=r"layers\.1\..*in the tuned model and not in the base"):
        DenseDelta.between(tiny("llama"), tiny("llama", num_hidden_layers=1))
