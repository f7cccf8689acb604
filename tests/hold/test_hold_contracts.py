"""What holds for every form in which a frozen base is held, whatever the form."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from families import FAMILIES, tiny
from temper.data.pack import pack
from temper.data.rows import Rows
from temper.engine.fit import fit
from temper.engine.kept import Recipe, _recipe_for, keeping_less
from temper.engine.settings import FitSettings
from temper.hold.base import Hold
from temper.models.load import load_model, save_model
from temper.models.model import Model
from temper.models.packed import unpack_all
from temper.signals.forward import token_logprobs
from temper.tune.base import Tune
from training import examples

METHODS = sorted(Hold.methods())
BESIDE = [name for name, method in sorted(Tune.methods().items()) if method.leaves_base]
INTO = [name for name, method in sorted(Tune.methods().items()) if not method.leaves_base]


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
    unpack_all(model.module)
    for path, weight in matrices(model).items():
        assert isinstance(weight, torch.nn.Parameter) and weight.dtype == dtype
        assert torch.equal(weight, matrices(dense)[path])
        assert not torch.equal(weight.float(), before[path]), "something was rounded"
    assert [type(one) for one in model.module.modules()] == [type(one) for one in dense.module.modules()]
    names = [[name for name, _ in one.module.named_parameters()] for one in (model, dense)]
    assert names[0] == names[1], "a parameter has its place back"


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
    with pytest.raises(AttributeError, match="held packed; call unpack_all"):
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
    chosen = {"tune": {tune: dict(Tune.methods()[tune].example)}, "recompute": 0.5}
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
        assert not isinstance(weight, torch.nn.Parameter), "still packed: what follows may need no numbers"
        assert torch.equal(weight, matrices(dense)[path])
    saved = [tmp_path / "packed", tmp_path / "dense"]
    for one, folder in zip((fitted, other), saved, strict=True):
        one.tuning.save(folder)
    files = [sorted(folder.glob("delta/*.safetensors")) for folder in saved]
    one, two = ({key: value for file in of for key, value in load_file(file).items()} for of in files)
    assert one and one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    fitted.tuning.merge()
    other.tuning.merge()
    losses = [token_logprobs(one, pack(examples())).detach() for one in (model, dense)]
    assert torch.equal(*losses)
    if tune not in ("loramoe", "soft_prompt"):  # which no file of a model holds as they are
        save_model(model, tmp_path / "model")
        again = load_model(tmp_path / "model")
        for path, weight in matrices(again).items():
            assert torch.equal(weight, matrices(dense)[path])


def test_what_is_still_packed_is_saved_as_numbers(tmp_path: Path) -> None:
    model = tiny("llama")
    dense = matrices(rounded(model, Hold.parse("int8"), torch.bfloat16))
    fit(model, rows(), settings(hold="int8")).tuning.detach()
    save_model(model, tmp_path)
    assert all(torch.equal(weight, dense[path]) for path, weight in matrices(load_model(tmp_path)).items())


def test_a_second_fit_begins_from_the_rounded_numbers(tmp_path: Path) -> None:
    model = tiny("qwen2")
    dense = rounded(model, Hold.parse("int8"), torch.bfloat16)
    fit(model, rows(), settings(hold="int8")).tuning.detach()
    fit(dense, rows(), settings()).tuning.detach()
    one, other = (fit(each, rows(), settings(tune="full"), folder=tmp_path) for each in (model, dense))
    for (name, mine), (_, theirs) in zip(one.tuning.parameters(), other.tuning.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("name", METHODS)
def test_training_after_a_plan_has_the_bits_of_training(name: str) -> None:
    """A plan runs on tensors without content: nothing of them may be left where real ones look for it."""
    script = f"""
import torch
from families import tiny
from temper.engine.trace import without_content, Ledger
from temper.hold.base import Hold
method, weight = Hold.parse({name!r}), torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
for plans in (True, False):
    if plans:
        with without_content(), Ledger():
            fake = torch.empty(64, 48)
            method.unpack(method.pack(fake), fake.shape, torch.float32)
made = method.unpack(method.pack(weight), weight.shape, torch.float32)
assert type(made) is torch.Tensor and float((made - weight).abs().mean()) < 0.1, (made - weight).abs().mean()
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_parts_of_a_fused_matrix_are_made_again_too(family: str) -> None:
    """DoRA with dropout reads each part of it by itself: no reading of the whole is kept."""
    model = tiny(family)
    Tune.parse({"dora": {"rank": 2, "dropout": 0.1}}).attach(model)
    Hold.parse("nf4").pack_blocks(model, torch.float32)
    model.module.train()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(_recipe_for(tensor), Recipe):
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(model, pack(examples())).sum()
    sizes = {weight.numel() for weight in matrices(model).values()}
    wholes = [one if one._base is None else one._base for one in kept]
    assert wholes and not any(whole.numel() in sizes and whole.grad_fn is None and whole.ndim == 2 for whole in wholes)


@pytest.mark.parametrize("tune", INTO)
def test_a_tuner_that_writes_into_the_base_is_refused(tune: str) -> None:
    assert {"full", "lisa", "lift", "s2ft"} <= set(INTO) and {"lora", "bone", "loramoe", "lofit"} <= set(BESIDE)
    with pytest.raises(ValidationError, match=r"hold: 'nf4' packs .* beside"):
        settings(tune=tune, hold="nf4")


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
