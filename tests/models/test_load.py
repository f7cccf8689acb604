"""Models in and out: saved = loaded bit for bit, names by content, and every refusal says what to do."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES, tiny, tiny_config, tiny_tokenizer
from temper.core.errors import ModelError, SettingError
from temper.delta.tensors import read_tensors
from temper.models.families import LAYOUTS
from temper.models.load import (
    as_model,
    fingerprint_folder,
    fingerprint_module,
    load_model,
    load_tokenizer,
    new_model,
    save_model,
)

TOKENS = torch.arange(4, 24)[None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    save_model(tiny("llama"), folder)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved model, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "broken"))


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_is_loaded(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny(family, dtype=dtype)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    before, after = model.module.state_dict(), loaded.module.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype and torch.equal(after[name], tensor), name
    assert loaded.anatomy == model.anatomy and loaded.folder == tmp_path / "model"
    assert loaded.fingerprint == model.fingerprint == fingerprint_folder(tmp_path / "model")
    assert fingerprint_module(loaded.module, loaded.tokenizer) == model.fingerprint
    text = "the thin\nHat {x} in [0]~"
    assert loaded.tokenizer(text).input_ids == model.tokenizer(text).input_ids
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == model.tokenizer.decode(
        model.tokenizer(text).input_ids
    )
    assert loaded.tokenizer.chat_template == model.tokenizer.chat_template
    assert not loaded.module.training and loaded.module.config._attn_implementation == "temper_packed"
    with torch.no_grad():
        assert torch.equal(loaded.module(TOKENS).logits, model.module(TOKENS).logits)


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "gpt2", "opt"])
def test_tied_stays_tied_and_is_written_once(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    head = loaded.module.get_submodule(loaded.anatomy.head)
    embedding = loaded.module.get_submodule(loaded.anatomy.embedding)
    assert model.anatomy.is_tied and loaded.anatomy.is_tied and head.weight is embedding.weight
    assert f"{model.anatomy.head}.weight" not in load_file(tmp_path / "model.safetensors")


def test_dtype_is_the_checkpoint_s_unless_another_is_asked_for(tmp_path: Path) -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    save_model(model, tmp_path)
    assert load_model(tmp_path).module.dtype == torch.bfloat16
    wide = load_model(tmp_path, dtype="float32")
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(wide.module.state_dict()[name], tensor.float())
    assert load_model(tmp_path, dtype=torch.float32).module.dtype == torch.float32
    with pytest.raises(SettingError, match="dtype: 'int7' is no dtype of weights"):
        load_model(tmp_path, dtype="int7")


def test_shards_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    model = tiny("gpt_neox")
    model.module.save_pretrained(tmp_path, max_shard_size="60KB")
    model.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert load_model(tmp_path).fingerprint == model.fingerprint
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match=r"names 'model-00002.*which is not there"):
        load_model(tmp_path)


def test_the_fingerprint_names_what_a_model_computes(saved: Path, tmp_path: Path) -> None:
    base = fingerprint_folder(saved)

    def flip(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1

    def swap(weights: dict[str, torch.Tensor]) -> None:
        first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
        weights[first], weights[second] = weights[second], weights[first]

    changes: dict[str, Callable[[Path], None]] = {
        "weight": lambda folder: rewrite_weights(folder, flip),
        "order": lambda folder: rewrite_weights(folder, swap),
        "config": lambda folder: rewrite_json(folder / "config.json", lambda c: c.update(rms_norm_eps=1e-3)),
        "generation": lambda folder: rewrite_json(
            folder / "generation_config.json", lambda c: c.update(eos_token_id=9)
        ),
        "merges": lambda folder: rewrite_json(folder / "tokenizer.json", lambda t: t["model"]["merges"].pop()),
        "template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}") and None,
    }
    names = {}
    for kind, change in changes.items():
        folder = Path(shutil.copytree(saved, tmp_path / kind))
        change(folder)
        names[kind] = fingerprint_folder(folder)
    assert len({base, *names.values()}) == len(changes) + 1, names
    rewrite_json(tmp_path / "weight" / "config.json", lambda c: c.update(transformers_version="9", _name_or_path="x"))
    assert fingerprint_folder(tmp_path / "weight") == names["weight"]


def test_using_a_model_does_not_change_its_fingerprint() -> None:
    model = tiny("opt")
    model.tokenizer(["a", "long"], padding=True, truncation=True, max_length=3)
    assert fingerprint_module(model.module, model.tokenizer) == model.fingerprint
    with torch.no_grad():
        next(model.module.parameters())[5, 0] += 1
    assert fingerprint_module(model.module, model.tokenizer) != model.fingerprint


def test_new_models_come_from_their_seed_alone() -> None:
    config, state = tiny_config("llama", bos_token_id=None, eos_token_id=50), torch.get_rng_state()
    kept = copy.deepcopy(config.to_dict())
    first, again, other = (new_model(config, tiny_tokenizer(), seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(torch.get_rng_state(), state) and config.to_dict() == kept
    assert first.module.dtype == torch.float32 and first.folder is None
    assert (first.module.config.bos_token_id, first.module.config.eos_token_id) == (1, 2)
    with pytest.raises(ModelError, match="vocab_size: 90 is less than the 97 tokens"):
        new_model(tiny_config("llama", vocab_size=90), tiny_tokenizer(), 0)


def test_a_missing_padding_token_is_chosen_and_said(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.pad_token = None
    model = new_model(tiny_config("llama"), tokenizer, 0)
    assert (model.tokenizer.pad_token, len(model.tokenizer)) == ("<eos>", 97)
    assert "'<eos>' pads" in model.notes[0]
    # As a padding index the token's embedding would never learn.
    assert model.module.config.pad_token_id is None
    assert new_model(tiny_config("llama"), tokenizer, 0).module.config.pad_token_id is None
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.notes == () and loaded.tokenizer.pad_token == "<eos>" and loaded.tokenizer.chat_template is None
    assert loaded.fingerprint == model.fingerprint


def test_a_tokenizer_with_more_tokens_than_the_model_is_said() -> None:
    model = as_model(tiny("llama").module, tiny_tokenizer(100))
    assert "100 tokens and the model embeds the first 97" in model.notes[0]


def test_a_tokenizer_is_what_its_file_says(tmp_path: Path) -> None:
    """transformers' own choice for a Qwen 2 folder drops the file's pre-tokenizer and decoder for its class' own."""
    model = tiny("qwen2")
    save_model(model, tmp_path)
    text = "one two  three"
    assert load_tokenizer(tmp_path)(text).input_ids == model.tokenizer(text).input_ids
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_weights_that_do_not_fit_are_named(broken: Path) -> None:
    gone, shape = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.extra.weight"] = weights.pop(gone)
        weights[shape] = weights[shape][:-1].clone()

    rewrite_weights(broken, spoil)
    with pytest.raises(ModelError) as caught:
        load_model(broken)
    message = str(caught.value)
    assert f"missing: {gone}" in message and "unexpected: model.layers.0.extra.weight" in message
    assert f"{shape} ([71, 48] saved, [72, 48] in the model)" in message


def test_pickles_are_refused(broken: Path) -> None:
    torch.save({}, broken / "pytorch_model.bin")
    load_model(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'pytorch_model\.bin' only, and loading a pickle can run any code"):
        load_model(broken)
    (broken / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load_model(broken)


def test_weights_that_were_cut_off_are_said(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{broken.name}: transformers cannot load it"):
        load_model(broken)
    with pytest.raises(ModelError, match=r"model\.safetensors: is no whole safetensors file"):
        read_tensors([weights])


def test_what_is_no_model_is_said(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no folder; give a model's folder"):
        load_model("./nowhere/to/be/found")
    with pytest.raises(ModelError, match=r"is no folder; give a model's folder"):
        load_model(tmp_path / "nowhere")
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not JSON"):
        load_model(broken)
    (broken / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(broken)


def test_an_unknown_family_is_loaded_by_its_layout_and_keeps_it(tmp_path: Path) -> None:
    """StarCoder 2 is no family that Temper knows."""
    import transformers

    config = transformers.Starcoder2Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=60,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with pytest.raises(ModelError, match="'starcoder2' is not known"):
        new_model(config, tiny_tokenizer(), 0)
    parts = {**LAYOUTS["llama"].parts, "up": "mlp.c_fc", "down": "mlp.c_proj"}
    del parts["gate"]
    layout = LAYOUTS["llama"].model_copy(update={"parts": parts})
    model = new_model(config, tiny_tokenizer(), 0, layout=layout)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.layout == layout and loaded.anatomy == model.anatomy and loaded.fingerprint == model.fingerprint
    assert [part.name for part in loaded.anatomy.blocks[0].parts] == ["q", "k", "v", "o", "up", "down"]


def test_trust_must_name_whose_code_runs(broken: Path) -> None:
    with pytest.raises(SettingError, match="does not say whose code may run; write its repository"):
        load_model(broken, trust_remote_code=True)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="brings no code; take the setting out"):
        load_model(broken, trust_remote_code=str(broken))
    rewrite_json(
        broken / "config.json",
        lambda c: c.update(model_type="mine", auto_map={"AutoModelForCausalLM": "some/code--file.Mine"}),
    )
    with pytest.raises(ModelError, match="where you trust it, set trust_remote_code: some/code"):
        load_model(broken)
    with pytest.raises(SettingError, match="is not all that the code comes from: some/code"):
        load_model(broken, trust_remote_code=str(broken))


REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MineConfig(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""
IN_ANOTHER_PROCESS = """
import sys
from temper.core.errors import ModelError
from temper.models.families import LAYOUTS
from temper.models.load import load_model

model = load_model("somebody/tiny")
print(model.fingerprint, model.folder)
print(load_model("somebody/tiny", revision="v2").module.config.rms_norm_eps)
for source, named in (("somebody/absent", {}), ("somebody/tiny", {"revision": "v3"}), ("some body", {})):
    try:
        load_model(source, **named)
    except ModelError as error:
        print(error)
try:
    load_model(sys.argv[1])
except ModelError as error:
    print(error)
coded = load_model(sys.argv[1], trust_remote_code=sys.argv[1], layout=LAYOUTS["llama"])
print(type(coded.module).__name__, coded.anatomy.family)
"""


def test_hub_ids_and_code_by_name_without_a_network(saved: Path, tmp_path: Path) -> None:
    """A hub id resolves in the hub's own cache; the process sees only a home that holds one repository."""
    repository = tmp_path / "home" / "hub" / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    for number, name in (("1", "main"), ("2", "v2")):
        commit = number * 40
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(saved, repository / "snapshots" / commit)
    rewrite_json(repository / "snapshots" / ("2" * 40) / "config.json", lambda c: c.update(rms_norm_eps=0.5))
    coded = Path(shutil.copytree(saved, tmp_path / "coded"))
    (coded / "mine.py").write_text(REMOTE_CODE)
    rewrite_json(
        coded / "config.json",
        lambda c: c.update(
            model_type="mine", auto_map={"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
        ),
    )
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": source}
    for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(coded)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{fingerprint_folder(saved)} {repository / 'snapshots' / ('1' * 40)}"
    assert lines[1] == "0.5"
    assert lines[2].startswith("somebody/absent: is neither a folder here nor in the hub's cache")
    assert lines[3].startswith("somebody/tiny (revision 'v3'): is neither")
    assert lines[4].startswith("some body: is neither")
    assert f"set trust_remote_code: {coded}" in lines[5]
    assert lines[6] == "Mine mine"
