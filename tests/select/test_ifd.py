"""IFD is the ratio of two losses, each by transformers' own forward pass; it finds what no instruction helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny
from pools import RECORDS, make_pool, rows_of
from temper.data.encode import Encoder
from temper.data.rows import Rows
from temper.data.source import Source
from temper.lab.bases import open_base
from temper.models.model import Model
from temper.select.base import Selector
from temper.select.ifd import InstructionFollowingDifficulty


def loss(model: Model, context: list[int], answer: list[int]) -> float:
    """The mean over the answer's tokens of -log p, one forward pass by itself."""
    tokens = torch.tensor([context + answer])
    with torch.no_grad():
        logprobs_TV = model.module(input_ids=tokens).logits[0].log_softmax(-1)
    return float(np.mean([-logprobs_TV[len(context) + i - 1, token] for i, token in enumerate(answer)]))


def naive(model: Model, prompt: str, completion: str) -> float:
    """s(A|Q) / s(A) on token numbers put together by hand: <bos>, the prompt's, the answer's, <eos>."""
    read = model.tokenizer
    question, answer = (read(text, add_special_tokens=False).input_ids for text in (prompt, completion))
    answer = [*answer, read.eos_token_id]
    return loss(model, [read.bos_token_id, *question], answer) / loss(model, [read.bos_token_id], answer)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_formula(tmp_path: Path, seed: int) -> None:
    model = tiny("llama", seed=seed)
    pool = make_pool(tmp_path, models={"base": model})
    expected = [naive(model, record["prompt"], record["completion"]) for record in RECORDS]
    whole = InstructionFollowingDifficulty(keep=1, limit=None).select(pool)
    # Means of a few float32 log-probabilities of some nats.
    assert whole.score_E.tolist() == pytest.approx(expected, rel=1e-5) and len(whole.kept) == len(RECORDS)
    assert whole.parts is not None
    np.testing.assert_allclose(whole.parts["loss"] / whole.parts["loss_alone"], whole.score_E)

    limit = float(np.median(expected))
    within = [index for index, value in enumerate(expected) if value <= limit]
    chosen = InstructionFollowingDifficulty(keep=0.67, limit=limit).select(pool).kept.tolist()
    best = sorted(within, key=lambda index: -expected[index])[: round(0.67 * len(within))]
    assert chosen == sorted(best) and 0 < len(chosen) < len(within)


def test_of_a_conversation_the_last_turn_is_the_answer_and_all_before_it_the_instruction(tmp_path: Path) -> None:
    model = tiny("llama")
    turns = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "me"},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "you"},
    ]
    rows = Rows.from_list([{"messages": turns}], "messages", "chat", "chat")
    scored = InstructionFollowingDifficulty(limit=None).select(make_pool(tmp_path, rows, {"base": model}))

    def rendered(messages: list[dict[str, str]]) -> list[int]:
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(model.tokenizer(text, add_special_tokens=False).input_ids)

    whole = Encoder.of(model, 128).supervised(rows.take([0])[0])
    answer = whole.tokens_T[len(rendered(turns[:-1])) :]
    answer = answer[: int(np.flatnonzero(whole.weights_T)[-1]) + 1 - len(rendered(turns[:-1]))].tolist()
    expected = loss(model, rendered(turns[:-1]), answer) / loss(
        model, rendered([{"role": "user", "content": ""}]), answer
    )
    assert scored.score_E[0] == pytest.approx(expected, rel=1e-5)


def test_another_model_may_look(tmp_path: Path) -> None:
    models = {"base": tiny("llama"), "small": tiny("llama", seed=4)}
    method = Selector.parse({"ifd": {"model": "small"}})
    assert method.models() == ("small",) and Selector.parse("ifd").models() == ()
    found = method.select(make_pool(tmp_path, models=models)).score_E
    assert found[0] == pytest.approx(naive(models["small"], RECORDS[0]["prompt"], RECORDS[0]["completion"]), rel=1e-5)


def test_a_copy_that_its_prompt_gives_away_is_easy_and_a_wrong_one_does_not_belong(tmp_path: Path) -> None:
    """To a base that can copy, a true copy is far below 1, and a stranger's answer above it: left out."""
    skill = {"skill": "copy", "num": 32}
    true = Source.parse({"lab": skill}).open("train", tmp_path)
    answers = [row.content["completion"] for row in true]
    records = [
        {"prompt": row.content["prompt"], "completion": answers[(number + 1) % 32]} for number, row in enumerate(true)
    ]
    rows = Rows.concatenate([true, rows_of(records, "strangers")], "both")
    base = open_base("nano")
    score_E = InstructionFollowingDifficulty().select(make_pool(tmp_path, rows, {"base": base})).score_E
    assert np.median(score_E[:32]) < 0.3 and np.median(score_E[32:]) > 1
    kept = InstructionFollowingDifficulty(keep=1).select(make_pool(tmp_path, rows, {"base": base})).kept
    # A few neighbours share their letters, so that one's answer suits the other.
    assert (kept < 32).sum() == 32 and (kept >= 32).sum() < 8
