"""GRAPE keeps, for each prompt, the response with the highest mean log-probability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny
from pools import RECORDS, make_pool, rows_of
from temper.data.encode import Encoder
from temper.data.rows import Rows
from temper.lab.bases import open_base
from temper.models.model import Model
from temper.select.grape import Grape


def formula(model: Model, records: list[dict[str, str]]) -> list[int]:
    """argmax_y (1/|y|) log p(y | x) for each x, row by row, with transformers' own forward pass."""
    best: dict[str, tuple[float, int]] = {}
    for index, row in enumerate(rows_of(records)):
        sequence = Encoder.of(model, 128).supervised(row)
        tokens_T = torch.from_numpy(sequence.tokens_T).long()
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(model.module(input_ids=tokens_T[None]).logits[0], 1)
        start = int(np.flatnonzero(sequence.weights_T)[0])
        mean = float(
            sum(logprobs_TV[t - 1, tokens_T[t]] for t in range(start, len(tokens_T))) / (len(tokens_T) - start)
        )
        prompt = str(row.content["prompt"])
        if prompt not in best or mean > best[prompt][0]:
            best[prompt] = (mean, index)
    return sorted(index for _, index in best.values())


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_choice_is_the_formulas(tmp_path: Path, seed: int) -> None:
    model = tiny("llama", seed=seed)
    selection = Grape().select(make_pool(tmp_path, models={"base": model}))
    assert selection.kept.tolist() == formula(model, RECORDS)
    assert len(selection.kept) == 3, "one response for each of three prompts"


def test_several_for_each_prompt_and_a_share_of_what_is_chosen(tmp_path: Path) -> None:
    score_E = Grape().select(make_pool(tmp_path)).score_E
    two = Grape(per_prompt=2).select(make_pool(tmp_path)).kept.tolist()
    assert len(two) == 5 and not {0, 1, 3} <= set(two) and {2, 4, 5} <= set(two)
    assert np.argmin(np.where(np.isin(np.arange(6), [0, 1, 3]), score_E, np.inf)) not in two
    one = Grape(keep=1 / 3).select(make_pool(tmp_path)).kept.tolist()
    assert one == [int(np.argmax(score_E))]


def test_conversations_answer_one_prompt_where_all_turns_before_the_last_are_equal(tmp_path: Path) -> None:
    def chat(question: str, answer: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    records = [chat("who?", "me"), chat("who?", "you"), chat("who then?", "you")]
    rows = Rows.from_list(records, "messages", "chats", "chats")
    selection = Grape().select(make_pool(tmp_path, rows))
    assert selection.kept.tolist() == [int(selection.score_E[:2].argmax()), 2]


def test_a_lab_model_prefers_the_style_that_it_was_taught(tmp_path: Path) -> None:
    """The base has learnt to copy; of a true and a spoilt copy it finds the true one likelier."""
    from temper.data.source import Source

    skill = {"skill": "copy", "num": 64, "num_errors": 2}
    true, spoilt = (Source.parse({"lab": {**skill, "noise": noise}}).open("train", tmp_path) for noise in (0.0, 1.0))
    rows = Rows.concatenate([spoilt, true], "both")
    selection = Grape().select(make_pool(tmp_path, rows, {"base": open_base("nano")}))
    assert len(selection.kept) == 64
    # A prompt of up to two letters can be copied wrongly by chance only; nano copies 0.9 and more of all.
    assert (selection.kept >= 64).mean() > 0.9
