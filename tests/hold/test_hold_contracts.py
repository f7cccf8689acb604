"""What holds for every form in which a frozen base is held, whatever the form."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from families import FAMILIES, tiny
from temper.core.errors import SettingError
from temper.data.pack import pack
from temper.data.rows import Rows
from temper.engine.fit import attach, fit
from temper.engine.kept import Recipe, _recipe_for, keeping_less
from temper.engine.settings import FitSettings
from temper.hold.base import Hold, unpack_blocks
from temper.models.model import Model
from temper.signals.forward import token_logprobs
from temper.tune.base import Tune
from training import examples

METHODS = sorted(Hold.methods())
BESIDE = [name for name, method in sorted(Tune.methods().items()) if name in {"lora", "dora", "lofit", "soft_prompt"}]


def matrices(model: Model) -> dict[str, Tensor]:
    return {part.path: model.module.get_submodule(part.path).weight for part in model.anatomy.parts()}


def rounded(model: Model, method: Hold, dtype: torch.dtype) -> Model:
    """A copy whose matrices are the numbers that a form gives back."""
    dense = copy.deepcopy(model)
    for weight in matrices(dense).values():
        weight.data = method.unpack(method.pack(weight.detach()), weight.shape, dtype)
    return dense


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_base_computes_with_the_numbers_that_it_stands_for(name: str, family: str, dtype: torch.dtype) -> None:
    """Outputs and an adapter's gradients have the bits of a model with those numbers, as it is and merged."""
    method, model = Hold.parse(name), tiny(family)
    before = {path: weight.detach().clone() for path, weight in matrices(model).items()}
    dense = rounded(model, method, dtype)
    found = []
    for one, is_packed in ((dense, False), (model, True)):
        torch.manual_seed(0)
        tuning = Tune.parse({"lora": {"rank": 2}}).attach(one)
        for _, parameter in tuning.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        if is_packed:
            method.pack_blocks(one, dtype)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16, cache_enabled=False), keeping_less():
            loss = token_logprobs(one, pack(examples())).sum()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for _, parameter in tuning.parameters())])
        tuning.detach()
    for theirs, ours in zip(*found, strict=True):
        assert torch.equal(theirs, ours)
    unpack_blocks(model)
    for path, weight in matrices(model).items():
        assert isinstance(weight, torch.nn.Parameter) and weight.dtype == dtype
        assert torch.equal(weight, matrices(dense)[path])
        assert not torch.equal(weight.float(), before[path]), "something was rounded"
    assert [type(one) for one in model.module.modules()] == [type(one) for one in dense.module.modules()]


@pytest.mark.parametrize("name", METHODS)
def test_no_numbers_are_kept_for_the_backward_pass(name: str) -> None:
    kept: list[list[int]] = []
    for packs in (True, False):
        model = tiny("llama")
        Tune.parse({"lora": {"rank": 2}}).attach(model)
        if packs:
            Hold.parse(name).pack_blocks(model, torch.float32)
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            made = _recipe_for(tensor)
            if not isinstance(made, Recipe):
                sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            token_logprobs(model, pack(examples())).sum()
        kept.append(sizes)
    # What the first block's q, k and v read has no gradient: nothing below them trains.
    read = [part for part in tiny("llama").anatomy.parts() if part.block > 0 or part.name not in ("q", "k", "v")]
    assert sum(kept[1]) - sum(kept[0]) == 4 * sum(part.in_features * part.out_features for part in read)


@pytest.mark.parametrize("name", METHODS)
def test_a_packed_weight_cannot_be_assigned_to_and_is_no_parameter(name: str) -> None:
    model = tiny("llama")
    Hold.parse(name).pack_blocks(model, torch.float32)
    path = next(iter(matrices(model)))
    module = model.module.get_submodule(path)
    assert f"{path}.weight" not in dict(model.module.named_parameters())
    with pytest.raises((AttributeError, KeyError)):
        module.weight = torch.nn.Parameter(torch.zeros_like(module.weight))


def settings(**more: object) -> FitSettings:
    written = {"tune": {"lora": {"rank": 2}}, "lr": 1e-2, "steps": 6, "batch_size": 4, "precision": "bf16", **more}
    return FitSettings.model_validate(written)


def rows() -> Rows:
    records = [{"prompt": "a" * (1 + index % 7), "completion": "cd" * (1 + index % 3)} for index in range(24)]
    return Rows.from_list(records, "completion", "made")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tune", BESIDE)
def test_a_fit_trains_beside_a_packed_base_and_leaves_numbers(name: str, tune: str, tmp_path: Path) -> None:
    """With blocks computed again, too: what trained is what trains on the rounded model, to the bit."""
    chosen = {"tune": {tune: {"heads": ["0.1"]} if tune == "lofit" else {}}, "recompute": 0.5}
    model = tiny("llama")
    dense = rounded(model, Hold.parse(name), torch.bfloat16)
    fitted = fit(model, rows(), settings(**chosen, hold=name), folder=tmp_path / "packed")
    other = fit(dense, rows(), settings(**chosen), folder=tmp_path / "dense")
    trained = dict(fitted.tuning.parameters())
    assert trained
    for key, parameter in other.tuning.parameters():
        assert torch.equal(parameter, trained[key]), key
    assert fitted.details["parameters"] == other.details["parameters"]
    for path, weight in matrices(model).items():
        assert torch.equal(weight, matrices(dense)[path])
    fitted.tuning.merge()
    other.tuning.merge()
    losses = [token_logprobs(one, pack(examples())).detach() for one in (model, dense)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("tune", ["full", "hft", "lisa", "lift", "spiel", "s2ft"])
def test_a_tuner_that_writes_into_the_base_is_refused(tune: str) -> None:
    with pytest.raises(SettingError, match=r"train\.hold.*nf4.*beside"):
        attach(tiny("llama"), settings(tune=tune, hold="nf4"))


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise Stopped

    chosen = settings(hold="nf4", checkpoint_steps=2, tune={"lora": {"rank": 2, "dropout": 0.2}})
    whole = fit(tiny("llama"), rows(), chosen, folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(tiny("llama"), rows(), chosen, folder=tmp_path / "killed", on_step=stop)
    again = fit(tiny("llama"), rows(), chosen, folder=tmp_path / "killed")
    for (_, one), (_, other) in zip(whole.tuning.parameters(), again.tuning.parameters(), strict=True):
        assert torch.equal(one, other)
