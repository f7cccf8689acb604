"""Generation: batched = one by one = transformers' own, sampling by the distribution, nothing else changed."""

from __future__ import annotations

import random

import pytest
import torch

from families import FAMILIES, tiny, tiny_module, tiny_tokenizer
from temper.models.generate import choose, evaluation_mode, generate, sample_from_beginnings, stop_tokens
from temper.models.model import Model

NEW = 10


def some_prompts(num: int, longest: int = 20, seed: int = 0) -> list[list[int]]:
    drawn = random.Random(seed)
    return [[1] + [drawn.randrange(4, 97) for _ in range(drawn.randrange(longest))] for _ in range(num)]


def one_by_one(model: Model, prompts: list[list[int]], **settings: object) -> list[list[int]]:
    return [generate(model, [prompt], NEW, **settings)[0] for prompt in prompts]  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_in_batches_is_one_by_one_is_transformers(family: str) -> None:
    model, prompts = tiny(family), some_prompts(12)
    # With these ends some rows stop early, so that batches are cut down on the way.
    ends = list(range(4, 16))
    alone = one_by_one(model, prompts, stop=ends)
    assert generate(model, prompts, NEW, stop=ends) == alone
    assert generate(model, prompts, NEW, stop=ends, batch_tokens=70) == alone
    lengths = {len(text) for text in alone}
    assert len(lengths) > 1 and NEW in lengths and not any(token in ends for text in alone for token in text)

    reference = tiny_module(family)
    reference.set_attn_implementation("eager")
    reference.generation_config.eos_token_id = None
    for prompt, text in zip(prompts[:4], one_by_one(model, prompts[:4], stop=()), strict=True):
        tokens = torch.tensor([prompt])
        whole = reference.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
        assert whole[0, len(prompt) :].tolist() == text


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_sample_depends_on_its_seed_and_not_on_its_batch(family: str) -> None:
    model, prompts = tiny(family), some_prompts(12)
    ends = list(range(4, 16))
    whole = generate(model, prompts, NEW, temperature=1.0, seed=3, stop=ends)
    assert generate(model, prompts, NEW, temperature=1.0, seed=3, stop=ends, batch_tokens=70) == whole
    assert generate(model, prompts, NEW, temperature=1.0, seed=4, stop=ends) != whole
    assert generate(model, prompts, NEW, temperature=1e-4, seed=3, stop=ends) == generate(
        model, prompts, NEW, stop=ends
    )


def test_a_choice_follows_the_distribution() -> None:
    logits_V = torch.tensor([0.0, 1.0, -1e9, 2.0, -1.0])
    temperature, num = 0.7, 40_000
    draws_B = torch.rand(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen_B = choose(logits_V.expand(num, -1), temperature, draws_B)
    share_V = torch.bincount(chosen_B, minlength=5) / num
    expected_V = torch.softmax(logits_V / temperature, -1)
    # Five standard deviations of a share over 40,000 draws; without the temperature it is off by 40 of them.
    assert ((share_V - expected_V).abs() <= 5 * (expected_V * (1 - expected_V) / num).sqrt()).all()
    edges_B = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    certain_V = torch.tensor([-1e9, 0.0, -1e9])
    assert choose(certain_V.expand(2, -1), 1.0, edges_B).tolist() == [1, 1]


def test_a_text_ends_before_the_token_that_ends_it() -> None:
    model, prompt = tiny("llama"), some_prompts(1)[0]
    (free,) = generate(model, [prompt], NEW, stop=())
    assert len(free) == NEW
    end = free[4]
    assert generate(model, [prompt], NEW, stop=[end]) == [free[: free.index(end)]]
    model.module.generation_config.eos_token_id = [2, end]
    assert stop_tokens(model) == sorted({2, end})
    assert generate(model, [prompt], NEW) == [free[: free.index(end)]]
    assert generate(model, [prompt], 0) == [[]] and generate(model, [], NEW) == []


def test_settings_of_the_checkpoint_change_nothing() -> None:
    model, prompts = tiny("llama"), some_prompts(4)
    before = generate(model, prompts, NEW)
    model.module.generation_config.repetition_penalty = 5.0
    model.module.generation_config.do_sample = True
    assert generate(model, prompts, NEW) == before


def test_modes_and_random_state_are_left_as_they_were() -> None:
    model, prompts = tiny("gpt2", resid_pdrop=0.9), some_prompts(4)
    quiet = generate(model, prompts, NEW)
    module = model.module.train()
    frozen = next(module.children()).eval()
    modes = {name: child.training for name, child in module.named_modules()}
    state = torch.get_rng_state()
    assert generate(model, prompts, NEW) == quiet
    generate(model, prompts, NEW, temperature=1.0)
    assert {name: child.training for name, child in module.named_modules()} == modes
    assert module.training and not frozen.training
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError), evaluation_mode(module):
        raise KeyError
    assert module.training


def test_what_cannot_be_continued_is_refused() -> None:
    model = tiny("opt")
    with pytest.raises(ValueError, match=r"prompts\[1\]: is empty"):
        generate(model, [[1], []], NEW)
    with pytest.raises(ValueError, match="temperature: -1 is negative"):
        generate(model, [[1]], NEW, temperature=-1)
    assert len(generate(model, [[5] * 118], 10, stop=())[0]) == 10
    with pytest.raises(ValueError, match="128 positions"):
        generate(model, [[5] * 119], 10)


def test_samples_begin_as_the_model_begins() -> None:
    model = tiny("llama")
    texts = sample_from_beginnings(model, 30, 12, seed=5)
    assert len(texts) == 30 and all(text[0] == 1 and 2 <= len(text) <= 12 for text in texts)
    assert texts == sample_from_beginnings(model, 30, 12, seed=5) != sample_from_beginnings(model, 30, 12, seed=6)
    assert len({tuple(text) for text in texts}) == 30
    model.module.generation_config.eos_token_id = list(range(2, 60))
    ended = sample_from_beginnings(model, 30, 12, seed=5)
    for text, short in zip(texts, ended, strict=True):
        ends = [place for place, token in enumerate(text) if 2 <= token < 60]
        assert short == (text[: ends[0] + 1] if ends else text)


def test_without_a_beginning_token_an_ordinary_one_is_drawn() -> None:
    model = tiny("llama")
    model.tokenizer = tiny_tokenizer()
    model.tokenizer.bos_token = None
    texts = sample_from_beginnings(model, 200, 4, seed=0)
    first = {text[0] for text in texts}
    assert len(first) > 60 and not first & {0, 2, 3}
