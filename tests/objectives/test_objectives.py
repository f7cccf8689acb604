"""The likelihood objectives against the formula they state, written naively."""

from __future__ import annotations

import math

import pytest
import torch

from families import tiny
from temper.core.schedule import Moment
from temper.data.encode import Encoder, RowError
from temper.data.example import Example, Format, Origin, Row
from temper.data.pack import pack
from temper.objectives.base import Objective
from temper.signals.setup import Setup
from training import examples

CONTENT: dict[Format, dict] = {
    "text": {"text": "abc def ghi"},
    "messages": {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]},
    "completion": {"prompt": "ab ", "completion": "cd"},
    "label": {"prompt": "ab ", "completion": "cd", "label": True},
    "preference": {"prompt": "ab ", "chosen": "cd", "rejected": "ef"},
}


@pytest.mark.parametrize("name", ["sft", "lm"])
def test_the_loss_is_the_stated_mean(name: str) -> None:
    model = tiny("llama")
    objective = Objective.parse(name)
    encoder = Encoder(model.tokenizer, 64)
    made = []
    for format in sorted(objective.formats):
        row = Row(format, CONTENT[format], {}, Origin("made", 1))
        made += [Example(sequences) for sequences in objective.encode(row, encoder)]
    batch = pack(made)
    loss = objective.build(model, Setup()).loss(batch, Moment(0, 0.0))
    total = weights = 0.0
    by_document = []
    for example in made:
        (sequence,) = example.sequences
        ids = torch.from_numpy(sequence.tokens_T.astype("int64"))
        logits_TV = model.module(input_ids=ids[None], use_cache=False).logits[0].float()
        own = own_weights = 0.0
        for place in range(1, len(ids)):
            probability = float(torch.softmax(logits_TV[place - 1], 0)[ids[place]])
            own -= float(sequence.weights_T[place]) * math.log(probability)
            own_weights += float(sequence.weights_T[place])
        total, weights = total + own, weights + own_weights
        by_document.append(own / own_weights)
    assert objective.units(batch) == pytest.approx(weights)
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    assert loss.document_B is not None
    assert loss.document_B.tolist() == pytest.approx(by_document, rel=1e-4)


def test_sft_learns_the_answer_and_lm_the_whole_text() -> None:
    encoder = Encoder(tiny("llama").tokenizer, 64)
    row = Row("completion", CONTENT["completion"], {}, Origin("made", 1))
    ((sft,),) = Objective.parse("sft").encode(row, encoder)
    ((lm,),) = Objective.parse("lm").encode(row, encoder)
    assert lm.weights_T.sum() == len(lm.tokens_T) - 1
    assert 0 < sft.weights_T.sum() < lm.weights_T.sum()


def test_lm_reads_a_long_text_in_pieces_and_predicts_every_token_once() -> None:
    encoder = Encoder(tiny("llama").tokenizer, 16)
    row = Row("text", {"text": "abcdefg " * 20}, {}, Origin("made", 1))
    pieces = [sequence for (sequence,) in Objective.parse("lm").encode(row, encoder)]
    whole = Encoder(tiny("llama").tokenizer, 10_000).plain(row)[0]
    assert all(len(piece.tokens_T) <= 16 for piece in pieces)
    assert sum(piece.weights_T.sum() for piece in pieces) == len(whole.tokens_T) - 1


def test_a_row_that_cannot_be_trained_on_says_why() -> None:
    encoder = Encoder(tiny("llama").tokenizer, 16)
    long = Row("completion", {"prompt": "a" * 50, "completion": "b"}, {}, Origin("made", 1))
    with pytest.raises(RowError, match="16"):
        Objective.parse("sft").encode(long, encoder)


def test_weights_of_tokens_count(tmp_path: object) -> None:
    model, made = tiny("llama"), examples((9, 12))
    target = Objective.parse("sft").build(model, Setup())
    plain = pack(made)
    doubled = pack(made)
    doubled.weights_N.mul_(2)
    one, two = (target.loss(batch, Moment(0, 0.0)).total for batch in (plain, doubled))
    assert float(two.detach()) == pytest.approx(2 * float(one.detach()), rel=1e-6)
    assert Objective.parse("sft").units(doubled) == 2 * Objective.parse("sft").units(plain)
