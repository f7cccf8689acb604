"""Prompt tuning equals PEFT's; a prompt is read before every document, travels with the model, and comes off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import temper
from families import FAMILIES, tiny
from temper.core.errors import ModelError, SettingError, StageError
from temper.data.encode import Encoder
from temper.data.example import Example
from temper.data.pack import pack, split_by_cost
from temper.decode.base import Decode
from temper.delta.base import read_delta
from temper.delta.dense import DenseDelta, add
from temper.delta.prompt import PromptDelta
from temper.measure.base import Subject, Suite
from temper.models.generate import generate
from temper.models.load import fingerprint_folder, fingerprint_module, load_model, save_model
from temper.models.model import Model
from temper.pipeline.plan import plan
from temper.signals.calibration import Calibration, Covariance, observe
from temper.signals.forward import hidden_states, token_logprobs
from temper.tune.base import Tune, Tuning
from temper.tune.soft_prompt import SoftPrompt
from training import examples, moved, outputs

LENGTH = 7
TEXT = "sort the words: "


def prompted(family: str, length: int = LENGTH, **settings: Any) -> tuple[Model, Tuning]:
    model = tiny(family)
    return model, Tune.parse({"soft_prompt": {"length": length, **settings}}).attach(model, seed=3)


def attach_prompt(model: Model, length: int = LENGTH, seed: int = 0) -> PromptDelta:
    """Give a model a prompt that matters."""
    width = model.module.get_input_embeddings().weight.shape[1]
    delta = PromptDelta(torch.randn(length, width, generator=torch.Generator().manual_seed(seed)))
    delta.apply(model)
    return delta


def in_peft(family: str, folder: Path, **settings: Any) -> Any:
    """The same tiny model in PEFT, with transformers' own attention."""
    module = tiny(family).module
    module.set_attn_implementation("eager")
    tiny(family).tokenizer.save_pretrained(folder)
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, tokenizer_name_or_path=str(folder), **settings
    )
    torch.manual_seed(3)
    return peft.get_peft_model(module, config).eval()


def peft_logprobs(theirs: Any, example: Example) -> Tensor:
    """What PEFT's model says of the supervised tokens of one document."""
    (sequence,) = example.sequences
    tokens_T = torch.from_numpy(sequence.tokens_T).long()
    logits_TV = theirs(input_ids=tokens_T[None], attention_mask=torch.ones(1, len(tokens_T))).logits[0, LENGTH:]
    told_T = torch.log_softmax(logits_TV[:-1], -1).gather(1, tokens_T[1:, None])[:, 0]
    return told_T[torch.from_numpy(sequence.weights_T[1:]) > 0]


PEFT_STARTS = {
    "text": {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": TEXT},
    "normal": {"prompt_tuning_init": "RANDOM"},
}


@pytest.mark.parametrize("start", PEFT_STARTS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "opt"])
def test_start_outputs_and_gradient_are_those_of_peft(family: str, start: str, tmp_path: Path) -> None:
    theirs = in_peft(family, tmp_path, **PEFT_STARTS[start])
    (vectors_PD,) = (parameter for parameter in theirs.parameters() if parameter.requires_grad)
    model, tuning = prompted(family, start=start, **({"text": TEXT} if start == "text" else {}))
    ((_, ours_PD),) = tuning.parameters()
    assert torch.equal(ours_PD, vectors_PD)
    found_N = token_logprobs(model, pack(examples()))
    # PEFT reads one document at a time, so this is also: packed = one by one.
    expected_N = torch.cat([peft_logprobs(theirs, example) for example in examples()])
    # Eager attention and packed attention add up in other orders: float32 rounding over two blocks.
    torch.testing.assert_close(found_N, expected_N, atol=2e-5, rtol=1e-5)
    found_N.sum().backward()
    expected_N.sum().backward()
    scale = float(vectors_PD.grad.abs().max())
    torch.testing.assert_close(ours_PD.grad, vectors_PD.grad, atol=1e-5 * scale, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_one_by_one_in_states_and_gradient(family: str, is_causal: bool) -> None:
    model, tuning = prompted(family)
    ((_, vectors_PD),) = tuning.parameters()
    made = examples((5, 1, 9, 12, 5))
    apart_TD = torch.cat([hidden_states(model, pack([example]), is_causal) for example in made])
    (apart_PD,) = torch.autograd.grad(apart_TD.square().sum(), vectors_PD)
    together_TD = hidden_states(model, pack(made), is_causal)
    (together_PD,) = torch.autograd.grad(together_TD.square().sum(), vectors_PD)
    assert together_TD.shape[0] == sum((5, 1, 9, 12, 5))
    # Sums of other shapes round otherwise; the gradient adds up five documents in another order.
    torch.testing.assert_close(together_TD, apart_TD, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together_PD, apart_PD, atol=1e-5 * float(apart_PD.abs().max()), rtol=1e-4)


def written_without_cache(model: Model, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, each from a pass over everything before it: vectors, then embeddings, by transformers alone."""
    tokens = list(prompt)
    embedding = model.module.get_submodule(model.anatomy.embedding)
    for _ in range(count):
        read = torch.cat([*model.prompts, embedding(torch.tensor(tokens))])
        logits_TV = model.module(inputs_embeds=read[None], use_cache=False).logits[0]
        tokens.append(int(logits_TV[-1].argmax()))
    return tokens[len(prompt) :]


PROMPTS = [[5, 6, 7], [8] * 12, [9], [10, 11, 12, 13, 14]]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "opt"])
def test_a_batch_written_with_a_cache_is_each_prompt_written_without(family: str) -> None:
    model = tiny(family)
    attach_prompt(model, 4)
    attach_prompt(model, 3, seed=1)
    with torch.no_grad():
        expected = [written_without_cache(model, prompt, 9) for prompt in PROMPTS]
        assert generate(model, PROMPTS, 9, stop=[]) == expected
        ended = generate(model, PROMPTS, 9, stop=[expected[0][1]])
    assert ended[0] == expected[0][: expected[0].index(expected[0][1])], "rows that end leave the batch"
    assert generate(tiny(family), PROMPTS, 9, stop=[]) != expected, "the prompt changes what is written"


def test_members_of_a_combination_have_prompts_of_their_own() -> None:
    large, tuned, untuned = tiny("llama"), tiny("llama", seed=1), tiny("llama", seed=1)
    attach_prompt(tuned)
    fused = Decode.parse({"emulated_fine_tuning": {"beta": 0.7}}).join([large, tuned, untuned])
    parts = [token_logprobs(fused, pack([example])) for example in examples((9, 4))]
    torch.testing.assert_close(token_logprobs(fused, pack(examples((9, 4)))), torch.cat(parts), atol=2e-5, rtol=1e-5)
    written = generate(fused, PROMPTS, 6, stop=[])
    assert written == [generate(fused, [prompt], 6, stop=[])[0] for prompt in PROMPTS]
    bare = Decode.parse({"emulated_fine_tuning": {"beta": 0.7}}).join([large, untuned, untuned])
    assert written != generate(bare, PROMPTS, 6, stop=[])


def test_starts_are_what_they_are_called() -> None:
    model = tiny("llama")
    table = model.module.get_input_embeddings().weight
    starts = {
        start: SoftPrompt(length=60, start=start)._start(model, 0) for start in ("vocabulary", "uniform", "normal")
    }
    rows = [(table == vector).all(1).nonzero().item() for vector in starts["vocabulary"]]
    assert len(set(rows)) == 60 and not {0, 1, 2, 3} & set(rows), "ordinary tokens, each once"
    assert starts["uniform"].abs().max() <= 0.5 < starts["normal"].abs().max()
    with pytest.raises(ValueError, match=r"tune\.soft_prompt\.text: None does not go with start: text"):
        SoftPrompt(start="text")
    with pytest.raises(ValueError, match="does not go with start: vocabulary"):
        SoftPrompt(text="x")


def test_a_prompt_comes_off_and_another_stands_behind_it() -> None:
    model = tiny("llama")
    base = outputs(model)
    first = attach_prompt(model)
    behind_one = outputs(model)
    tuning = Tune.parse({"soft_prompt": {"length": 2}}).attach(model)
    assert model.prompt_length == LENGTH + 2 and torch.equal(model.prompts[0], first.vectors_PD)
    moved(tuning)
    tuning.detach()
    assert torch.equal(outputs(model), behind_one)
    model.prompts = ()
    assert torch.equal(outputs(model), base)
    undo = PromptDelta(first.vectors_PD).apply(model)
    assert torch.equal(outputs(model), behind_one)
    undo.undo()
    assert torch.equal(outputs(model), base)


def test_a_saved_model_has_its_prompts_and_a_name_of_its_own(tmp_path: Path) -> None:
    model = tiny("llama")
    bare = fingerprint_module(model.module, model.tokenizer)
    attach_prompt(model)
    attach_prompt(model, 2, seed=1)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(outputs(again), outputs(model))
    named = fingerprint_module(model.module, model.tokenizer, model.prompts)
    assert named == again.fingerprint == fingerprint_folder(tmp_path) != bare
    save_model(replace(again, prompts=()), tmp_path)
    assert not load_model(tmp_path).prompts and fingerprint_folder(tmp_path) == bare


def test_peft_reads_what_is_saved_and_the_other_way_round(tmp_path: Path) -> None:
    model, tuning = prompted("llama")
    moved(tuning)
    tuning.save(tmp_path)
    module = tiny("llama").module
    module.set_attn_implementation("eager")
    theirs = peft.PeftModel.from_pretrained(module, tmp_path / "delta").eval()
    expected_N = torch.cat([peft_logprobs(theirs, example) for example in examples()])
    torch.testing.assert_close(outputs(model), expected_N, atol=2e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    delta = read_delta(tmp_path / "theirs")
    assert isinstance(delta, PromptDelta) and torch.equal(delta.vectors_PD, model.prompts[0])
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_transformer_submodules": 2}))
    with pytest.raises(ModelError, match=r"adapter_config\.json: num_transformer_submodules: 2 is not supported"):
        read_delta(tmp_path / "theirs")


def test_what_works_on_weights_refuses_a_prompt(tmp_path: Path) -> None:
    model = tiny("llama")
    delta = attach_prompt(model)
    other = PromptDelta(delta.vectors_PD[:2])
    joined = add(delta, other)
    assert isinstance(joined, PromptDelta) and len(joined.vectors_PD) == LENGTH + 2
    dense = DenseDelta({"model.norm.weight": torch.ones(48)})
    for work in (lambda: add(delta, dense), lambda: delta.scale(0.5), delta.names):
        with pytest.raises(ModelError, match=r"changes no weight: .* take the change since"):
            work()
    for one, two in ((model, tiny("llama")), (tiny("llama"), model)):
        with pytest.raises(ModelError, match="read other soft prompts"):
            DenseDelta.between(one, two)
    with pytest.raises(ModelError, match="attach it to a Model"):
        delta.apply(model.module)
    with pytest.raises(ModelError, match="a soft prompt of width 5 does not go before embeddings of width 48"):
        PromptDelta(torch.zeros(2, 5)).apply(model)


def test_positions_that_the_prompt_takes_are_accounted_for() -> None:
    model = tiny("gpt2")
    attach_prompt(model, 100)
    assert Encoder.of(model, 2048).max_length == model.num_positions == 28
    outputs_fit = hidden_states(model, pack(examples((28,))))
    assert len(outputs_fit) == 28
    with pytest.raises(ModelError, match="29 tokens and 100 of soft prompts are more than the model's 128 positions"):
        hidden_states(model, pack(examples((29,))))
    with pytest.raises(ValueError, match="28 positions"):
        generate(model, [[5] * 20], 9)
    with pytest.raises(SettingError, match="length: 28 vectors leave no room in the model's 28 positions"):
        SoftPrompt(length=28).attach(model)
    made = examples((5, 5, 5, 5))
    assert [len(part) for part in split_by_cost(made, 24)] == [4]
    assert [len(part) for part in split_by_cost(made, 24, 7)] == [2, 2], "a prompt's positions fill a pass"


def test_statistics_see_the_prompt_too() -> None:
    """What a module reads of a document is its prompt and its tokens."""
    model, made = tiny("llama"), examples((5, 9))
    path = model.anatomy.blocks[0].parts[0].path
    found = []
    for length in (0, LENGTH):
        if length:
            attach_prompt(model, length)
        calibration = Calibration({path: Covariance()})
        observe(model, [pack(made)], [calibration])
        apart = Calibration({path: Covariance()})
        observe(model, [pack([example]) for example in made], [apart])
        found.append(calibration.statistics[path].mean_II)  # type: ignore[attr-defined]
        expected = apart.statistics[path].mean_II  # type: ignore[attr-defined]
        torch.testing.assert_close(found[-1], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


DATA = [{"lab": {"skill": "copy", "num": 24}}]
GAIN = {"perplexity": {"source": {"lab": {"skill": "copy", "num": 8}}}}
SHORT: dict[str, Any] = {"data": DATA, "steps": 3, "batch_size": 4}


def recipe(stages: list[dict[str, Any]]) -> temper.Recipe:
    return temper.Recipe(base="lab:nano", name="promot", measure={"gain": [GAIN]}, stages=stages)


def promot(tune: object) -> list[dict[str, Any]]:
    return [
        {"name": "prompt", "train": {**SHORT, "tune": {"soft_prompt": {"length": 5}}, "lr": 0.1}},
        {"name": "tuned", "train": {**SHORT, "from": "base", "with": "prompt", "tune": tune, "lr": 1e-2}},
        {"name": "on_task", "port": {"of": "prompt", "onto": "tuned"}},
        {"name": "behind", "train": {**SHORT, "from": "prompt", "tune": tune, "lr": 1e-2}},
    ]


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_promot_trains_under_a_prompt_and_takes_it_off(tune: str, tmp_path: Path) -> None:
    result = temper.run(recipe(promot(tune)), runs=tmp_path)
    base, prompt, tuned, on_task, behind = (
        result.model(name) for name in ("base", "prompt", "tuned", "on_task", "behind")
    )
    assert not tuned.prompts and torch.equal(on_task.prompts[0], prompt.prompts[0])
    # The prompt is taken off: what is left is the base and the second stage's change, bit for bit.
    folder = result.stages["tuned"].folder
    if tune == "lora":
        read_delta(folder / "delta").apply(base)
    else:
        base = load_model(folder / "model")
    weights = dict(tuned.module.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in base.module.named_parameters())
    # The same training from the model with its prompt: the same weights, and the prompt still there.
    assert all(torch.equal(weights[name], value) for name, value in behind.module.named_parameters())
    assert torch.equal(behind.prompts[0], prompt.prompts[0])
    plain = recipe([{"name": "tuned", "train": {**SHORT, "tune": tune, "lr": 1e-2}}])
    other = temper.run(plain, runs=tmp_path / "plain").model("tuned")
    assert any(not torch.equal(weights[name], value) for name, value in other.module.named_parameters())
    # Each is measured as it is: without its prompt, and behind it.
    measured = {name: dict(result.stages[name].suites) for name in ("tuned", "on_task")}
    for name, model in (("tuned", tuned), ("on_task", on_task)):
        report = next(report for report in measured[name].values() if report["role"] == "gain")
        assert report["value"] == Suite.parse(GAIN).measure(Subject(model), tmp_path).value
    assert measured["tuned"] != measured["on_task"]


def test_stages_that_cannot_hold_a_prompt_name_the_way_out(tmp_path: Path) -> None:
    first = promot("lora")[0]
    merged = {"name": "merged", "merge": {"method": "linear", "of": ["prompt"]}}
    with pytest.raises(StageError, match=r"reads other soft prompts than 'base'.*`with`"):
        temper.run(recipe([first, merged]), runs=tmp_path)
    exported = {"name": "out", "export": {"from": "prompt", "as": "model"}}
    with pytest.raises(StageError, match=r"cannot hold 'prompt': .* as: adapter"):
        temper.run(recipe([first, exported]), runs=tmp_path)
    adapter = {"name": "out", "export": {"from": "prompt", "as": "adapter", "to": str(tmp_path / "adapter")}}
    temper.run(recipe([first, adapter]), runs=tmp_path)
    assert isinstance(read_delta(tmp_path / "adapter"), PromptDelta)
    compressed = {"name": "small", "compress": {"method": "compeft", "of": "prompt"}}
    with pytest.raises(StageError, match="changes no weight"):
        temper.run(recipe([first, compressed]), runs=tmp_path)
    lent = {"name": "tuned", "train": {**SHORT, "from": "base", "with": "lora"}}
    with pytest.raises(StageError, match=r"train\.with: 'lora' made a low_rank change"):
        temper.run(recipe([{"name": "lora", "train": {**SHORT, "tune": "lora"}}, lent]), runs=tmp_path)


def test_a_plan_counts_the_prompts_that_a_stage_reads(tmp_path: Path) -> None:
    made = plan(recipe(promot("lora")), runs=tmp_path, flops_per_second=1e9)
    plain = plan(recipe([{"name": "tuned", "train": {**SHORT, "tune": "lora"}}]), runs=tmp_path, flops_per_second=1e9)
    by_name = {stage.name: stage for stage in made.stages}
    width = int(temper.load_model("lab:nano").module.config.hidden_size)
    assert made.works and by_name["prompt"].trainable_parameters == 5 * width
    for name in ("tuned", "behind"):
        assert (by_name[name].flops or 0) > 1.2 * (plain.stages[0].flops or 0)


def test_the_recipe_of_promot_is_these_stages(root: Path) -> None:
    read = temper.Recipe.load(root / "recipes" / "promot.yaml")
    prompt, tuned, on_task = (read.step(name).stage.written() for name in ("prompt", "tuned", "on_task"))
    assert "soft_prompt" in prompt["train"]["tune"]
    assert (tuned["train"]["from"], tuned["train"]["with"]) == ("base", ["prompt"])
    assert (on_task["port"]["of"], on_task["port"]["onto"]) == ("prompt", "tuned")
