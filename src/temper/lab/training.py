"""The plain loop that teaches a lab base its first skills.

It is small on purpose and knows none of the methods: full training in float32, AdamW, warm-up and cosine, loss on
the answers alone, short rows padded on the right under a causal mask (which no answer can see).

Legend: M rows, L tokens of the longest row, B rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from temper.data.encode import Encoder
from temper.data.example import Origin, Row
from temper.lab.skill import Skill
from temper.models.generate import generate
from temper.models.model import Model

IGNORED = -100
WARMUP_STEPS = 20
CLIP = 1.0


@dataclass(frozen=True)
class Budget:
    """How long and how hard a base is trained."""

    steps: int
    """optimizer steps"""
    batch_size: int
    """rows a step"""
    lr: float
    """peak of AdamW's learning rate"""


def question(skill: Skill, argument: str) -> Row:
    """Return a question and its answer as a row."""
    content = {"prompt": skill.prompt(argument), "completion": skill.answer(argument)}
    return Row("completion", content, {"task": skill.method_name}, Origin("<lab>", None))


def skill_named(name: str) -> Skill:
    """Return a skill with its default settings."""
    return Skill.parse(name)


def teach(model: Model, knows: Mapping[str, int], budget: Budget, seed: int) -> None:
    """Train a model, in place, to answer the questions of skills.

    Args:
        knows: how many different questions of each skill make up the data; a share of it, therefore.
    """
    rows = [
        question(skill, argument)
        for skill, num in ((skill_named(name), num) for name, num in knows.items())
        for argument in skill.arguments("train", num, seed)
    ]
    tokens_ML, targets_ML = encode(model, rows)
    parameters = list(model.module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=budget.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)
    order_M = torch.empty(0, dtype=torch.int64)
    for step in range(budget.steps):
        factor = min((step + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * step / budget.steps)))
        for group in optimizer.param_groups:
            group["lr"] = budget.lr * factor
        if len(order_M) < budget.batch_size:
            order_M = torch.cat([order_M, torch.randperm(len(rows), generator=generator)])
        batch_B, order_M = order_M[: budget.batch_size], order_M[budget.batch_size :]
        loss = _loss(model.module, tokens_ML[batch_B], targets_ML[batch_B])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()


def encode(model: Model, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Return tokens (M, L), padded on the right, and what to predict at each (`IGNORED` where nothing is)."""
    encoder = Encoder(model.tokenizer, model.module.config.max_position_embeddings)
    sequences: list[Any] = encoder.supervised_many(rows)
    longest = max(len(sequence.tokens_T) for sequence in sequences)
    # What fills a row up is never read: not the padding token, at which transformers would ask for a mask.
    tokens_ML = torch.full((len(rows), longest), model.tokenizer.eos_token_id)
    targets_ML = torch.full((len(rows), longest), IGNORED)
    for tokens_L, targets_L, sequence in zip(tokens_ML, targets_ML, sequences, strict=True):
        length = len(sequence.tokens_T)
        tokens_T = torch.from_numpy(sequence.tokens_T).long()
        tokens_L[:length] = tokens_T
        is_supervised_T = torch.from_numpy(sequence.weights_T[1:] > 0)
        targets_L[: length - 1] = torch.where(is_supervised_T, tokens_T[1:], IGNORED)
    return tokens_ML, targets_ML


def _loss(module: Any, tokens_BL: Tensor, targets_BL: Tensor) -> Tensor:
    # Positions after the last token that predicts anything cost time and teach nothing.
    length = int((targets_BL != IGNORED).any(0).nonzero().max()) + 1
    logits_BLV = module(input_ids=tokens_BL[:, :length], use_cache=False).logits
    loss: Tensor = cross_entropy(logits_BLV.flatten(0, 1), targets_BL[:, :length].flatten(), ignore_index=IGNORED)
    return loss


def exact_match(model: Model, skill: Skill, num: int = 200, seed: int = 0) -> float:
    """Return the share of `num` held-out questions that a model answers exactly right, greedily."""
    encoder = Encoder(model.tokenizer, model.module.config.max_position_embeddings)
    rows = [question(skill, argument) for argument in skill.arguments("test", num, seed)]
    answers = [str(row.content["completion"]) for row in rows]
    written = generate(model, [encoder.prompt(row) for row in rows], max(map(len, answers)) + 4)
    texts: list[str] = [model.tokenizer.decode(tokens) for tokens in written]
    return sum(text == answer for text, answer in zip(texts, answers, strict=True)) / len(rows)
