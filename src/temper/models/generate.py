"""What a model writes: greedy or sampled continuations, many prompts at a time.

Decisions:
- A loop of our own over the model's forward and transformers' cache, rather than `module.generate`: settings in a
  checkpoint's generation_config (top-p, repetition penalty) never change a measurement, rows that have ended leave
  the batch, and a sample does not depend on what else is in its batch.
- Prompts of like length share a batch, padded on the left.
- Sampling draws one number for each prompt and step, all at once from the seed, and inverts the distribution's
  cumulative sum: the same seed gives the same tokens however prompts are batched.

Legend: P prompts, B rows of a batch, L longest prompt of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from temper.models.cache import cache_name
from temper.models.model import Model
from temper.models.prompt import embed_padded_behind_prompts

COMPACT_AT = 0.5
"""The batch is cut down when at most this share of its rows is still writing."""


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[int] | None = None,
    batch_tokens: int = 16384,
) -> list[list[int]]:
    """Continue prompts.

    Args:
        prompts: tokens, at least one for each prompt.
        max_new_tokens: tokens to write at most.
        temperature: 0 takes the likeliest token (the first of equals); above 0 samples.
        seed: of the samples.
        stop: tokens that end a text; the tokenizer's and the checkpoint's end-of-sequence tokens if None.
        batch_tokens: tokens of a batch at most, prompts (soft ones too) and what is written together.

    Returns:
        the new tokens of each prompt, without the one that ended it.

    Raises:
        ValueError: an empty prompt, a negative temperature, or more tokens than the model has positions for.
    """
    ends = set(stop_tokens(model) if stop is None else stop)
    texts = _continue(model, prompts, max_new_tokens, temperature, seed, ends, batch_tokens)
    return [text[:-1] if text and text[-1] in ends else text for text in texts]


def sample_from_beginnings(model: Model, num: int, length: int, seed: int) -> list[list[int]]:
    """Return texts that a model samples at temperature 1 from its own beginnings, to measure drift from it.

    A text begins with the tokenizer's beginning-of-sequence token, or with a seeded random ordinary token where it
    has none, and has at most `length` tokens (2 at least), the beginning and a token that ends it included.
    """
    tokenizer = model.tokenizer
    if tokenizer.bos_token_id is not None:
        beginnings = [[int(tokenizer.bos_token_id)]] * num
    else:
        num_tokens = min(len(tokenizer), model.module.config.get_text_config().vocab_size)
        special = set(tokenizer.all_special_ids)
        ordinary = torch.tensor([token for token in range(num_tokens) if token not in special])
        drawn = torch.randint(len(ordinary), (num,), generator=torch.Generator().manual_seed(seed))
        beginnings = [[token] for token in ordinary[drawn].tolist()]
    ends = set(stop_tokens(model))
    texts = _continue(model, beginnings, max(length, 2) - 1, 1.0, seed, ends, batch_tokens=16384)
    return [beginning + text for beginning, text in zip(beginnings, texts, strict=True)]


def stop_tokens(model: Model) -> list[int]:
    """Return the tokens that end a text: the tokenizer's and those of the checkpoint's generation_config."""
    named = model.module.generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named])
    return sorted((ends | {model.tokenizer.eos_token_id}) - {None})


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout off, and every submodule back to its own mode afterwards."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


def _continue(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    ends: set[int],
    batch_tokens: int,
) -> list[list[int]]:
    """Return the new tokens of each prompt, with the one that ended it."""
    _check(model, prompts, max_new_tokens, temperature)
    texts: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens < 1:
        return texts
    draws_P: Tensor | None = None
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        draws_P = torch.rand(len(prompts), max_new_tokens, generator=generator, dtype=torch.float64)
    with torch.no_grad(), ExitStack() as modes:
        for member in model.members:
            modes.enter_context(evaluation_mode(member.module))
        longest = max(member.prompt_length for member in model.members)
        for batch in _batches([longest + len(prompt) for prompt in prompts], max_new_tokens, batch_tokens):
            writer = _Writer(model, [prompts[index] for index in batch], max_new_tokens)
            draws_B = None if draws_P is None else draws_P[batch].to(writer.device)
            for index, text in zip(batch, writer.write(ends, temperature, draws_B), strict=True):
                texts[index] = text
    return texts


def _check(model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float) -> None:
    if temperature < 0:
        raise ValueError(f"temperature: {temperature} is negative; 0 is greedy, 1 samples as the model says")
    empty = next((index for index, prompt in enumerate(prompts) if len(prompt) == 0), None)
    if empty is not None:
        raise ValueError(f"prompts[{empty}]: is empty; begin it with the tokenizer's beginning-of-sequence token")
    positioned = [member for member in model.members if member.anatomy.positions is not None]
    if positioned and prompts:
        longest = max(map(len, prompts))
        limit = min(member.num_positions for member in positioned)
        if longest + max_new_tokens > limit:
            raise ValueError(
                f"max_new_tokens: {max_new_tokens} after a prompt of {longest} tokens is more than the model's "
                f"{limit} positions; shorten the prompt or write less"
            )


def _batches(lengths: Sequence[int], max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Cut prompts, longest first, into batches of at most `batch_tokens` (but at least one prompt)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        size = max(1, batch_tokens // (lengths[order[0]] + max_new_tokens))
        yield order[:size]
        order = order[size:]


class _Reader:
    """One model at work on a batch, behind its soft prompts.

    Args:
        padding_B: places of padding before each row's tokens.
        length: places of a row, as long as the batch may get.
    """

    def __init__(self, model: Model, padding_B: Tensor, length: int) -> None:
        self.model, self.padding_B = model, padding_B
        # Made once: one slice a step instead of one concatenation.
        places = torch.arange(length + model.prompt_length, device=padding_B.device)
        self.mask_BL = (places >= padding_B[:, None]).long()
        self.cache = DynamicCache(config=model.module.config)
        self.cache_name = cache_name(model.module)

    def next(self, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Return the logits (B, V) of what follows rows of which `seen` places are read, these tokens included."""
        num = self.model.prompt_length
        read = {"input_ids": tokens}
        if num and self.cache.get_seq_length() == 0:
            read = {"inputs_embeds": embed_padded_behind_prompts(self.model, tokens, self.padding_B)}
            positions = (torch.arange(num + seen, device=tokens.device) - self.padding_B[:, None]).clamp(min=0)
        elif num:
            positions = positions + num
        logits: Tensor = self.model.module(
            **read,
            position_ids=positions,
            attention_mask=self.mask_BL[:, : num + seen],
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_name: self.cache},
        ).logits
        return logits[:, -1]

    def keep(self, rows_B: Tensor) -> None:
        """Go on with some of the rows."""
        self.mask_BL = self.mask_BL[rows_B]
        self.cache.batch_select_indices(rows_B)


class _Writer:
    """One batch that is being continued."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.fusion = model.fusion
        self.device = model.module.get_input_embeddings().weight.device
        self.max_new_tokens = max_new_tokens
        length = max(map(len, prompts))
        padding = torch.tensor([length - len(prompt) for prompt in prompts], device=self.device)
        tokens = [[0] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens_BL = torch.tensor(tokens, device=self.device)
        self.positions_BL = (torch.arange(length, device=self.device) - padding[:, None]).clamp(min=0)
        self.readers = [_Reader(member, padding, length + max_new_tokens) for member in model.members]

    def write(self, ends: set[int], temperature: float, draws_B: Tensor | None) -> list[list[int]]:
        """Return each row's new tokens, up to and with the first of `ends`."""
        texts: list[list[int]] = [[] for _ in range(len(self.tokens_BL))]
        rows = list(range(len(texts)))
        """the batch's rows that are still computed"""
        is_writing = [True] * len(texts)
        tokens, positions, seen = self.tokens_BL, self.positions_BL, self.tokens_BL.shape[1]
        for step in range(self.max_new_tokens):
            logits_BV = self._next(tokens, positions, seen)
            draws = None if draws_B is None else draws_B[:, step]
            new_B = choose(logits_BV, temperature, draws)
            for row, token in zip(rows, new_B.tolist(), strict=True):
                if is_writing[row]:
                    texts[row].append(token)
                    is_writing[row] = token not in ends
            kept = [place for place, row in enumerate(rows) if is_writing[row]]
            if not kept:
                break
            tokens, positions, seen = new_B[:, None], positions[:, -1:] + 1, seen + 1
            if len(kept) <= COMPACT_AT * len(rows):
                rows = [rows[place] for place in kept]
                kept_B = torch.tensor(kept, device=self.device)
                tokens, positions = tokens[kept_B], positions[kept_B]
                draws_B = None if draws_B is None else draws_B[kept_B]
                for reader in self.readers:
                    reader.keep(kept_B)
        return texts

    def _next(self, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Return what follows each row: logits, or the log-probabilities of a combination."""
        logits = [reader.next(tokens, positions, seen) for reader in self.readers]
        if self.fusion is None:
            return logits[0]
        return self.fusion.combine([torch.log_softmax(own.float(), -1) for own in logits])


def choose(logits_BV: Tensor, temperature: float, draws_B: Tensor | None) -> Tensor:
    """Return the next token of each row: the likeliest, or the one in which a draw of the distribution falls.

    Args:
        logits_BV: logits.
        temperature: what they are divided by; 0 for the likeliest token.
        draws_B: float64 in [0, 1), needed where the temperature is above 0.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    assert draws_B is not None
    cumulative_BV = torch.softmax(logits_BV.double() / temperature, -1).cumsum(-1)
    # The last sum is 1 to rounding: a draw is scaled to it, so that it always falls on a token.
    drawn_B1 = torch.searchsorted(cumulative_BV, draws_B[:, None] * cumulative_BV[:, -1:], right=True)
    return drawn_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1)
