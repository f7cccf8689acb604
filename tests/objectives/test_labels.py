"""Classes and tags: equal to transformers' heads; open attention equals a full mask, and learns what only it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForSequenceClassification, LlamaForTokenClassification

from families import FAMILIES, WINDOW, tiny, tiny_config
from objective_rows import encoded, setup_of
from temper.core.schedule import Moment
from temper.data.encode import Encoder, RowError
from temper.data.example import Example, Origin, Row
from temper.data.pack import pack
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.objectives.labelling import LabelTarget
from temper.signals.forward import hidden_states
from temper.signals.labels import LabelHead
from training import examples, make_loop

CLASSIFY = {"labels": ["few", "many"]}
TAG = {"labels": ["odd", "even"]}


def open_mask(length: int, window: int | None) -> torch.Tensor:
    """An additive mask that hides nothing, or what is further than a window, on both sides."""
    place = torch.arange(length)
    far = (place[:, None] - place).abs() >= (window or length)
    return torch.zeros(1, 1, length, length).masked_fill(far, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_attention_equals_a_full_mask(family: str) -> None:
    model, made = tiny(family), examples()
    got_TD = hidden_states(model, pack(made), is_causal=False)
    backbone = model.module.get_submodule(model.anatomy.backbone)
    alone = []
    for example in made:
        tokens = torch.from_numpy(example.sequences[0].tokens_T.astype(np.int64))
        full, near = (open_mask(len(tokens), window) for window in (None, WINDOW))
        mask: Any = {"mistral": near, "phi3": near}.get(family, full)
        if family.startswith("gemma"):
            mask = {"full_attention": full, "sliding_attention": near}
        places = torch.arange(len(tokens))[None]
        out = backbone(input_ids=tokens[None], position_ids=places, attention_mask=mask, use_cache=False)
        alone.append(out.last_hidden_state[0])
    # Float32 sums of some hundred products in another order.
    torch.testing.assert_close(got_TD, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got_TD, hidden_states(model, pack(made)), atol=1e-2), "causal attention is another thing"


def target_of(name: str, settings: dict[str, Any], model: Model) -> LabelTarget:
    target = Objective.parse({name: settings}).build(model, setup_of(model))
    assert isinstance(target, LabelTarget)
    with torch.no_grad():
        target.head.weight_KD.normal_(generator=torch.Generator().manual_seed(1))
    return target


def test_classes_equal_transformers() -> None:
    model = tiny("llama")
    made = encoded(Objective.parse({"classify": CLASSIFY}), model, 9)
    target = target_of("classify", CLASSIFY, model)
    theirs = LlamaForSequenceClassification(tiny_config("llama", num_labels=2)).eval()
    theirs.model.load_state_dict(model.module.model.state_dict())
    theirs.score.weight = target.head.weight_KD
    expected = 0.0
    for example in made:
        (sequence,) = example.sequences
        tokens, label = torch.from_numpy(sequence.tokens_T.astype(np.int64)), torch.tensor([int(sequence.labels_T[-1])])
        expected += float(theirs(input_ids=tokens[None], labels=label).loss.detach())
    assert float(target.loss(pack(made), Moment(0, 0.0)).total.detach()) == pytest.approx(expected, rel=1e-5)


def test_tags_equal_transformers() -> None:
    model = tiny("llama")
    made = encoded(Objective.parse({"tag": TAG}), model, 9)
    settings = {**TAG, "causal": True}
    target = target_of("tag", settings, model)
    theirs = LlamaForTokenClassification(tiny_config("llama", num_labels=2)).eval()
    theirs.model.load_state_dict(model.module.model.state_dict())
    with torch.no_grad():
        theirs.score.weight.copy_(target.head.weight_KD)
        theirs.score.bias.zero_()
    expected = 0.0
    for example in made:
        (sequence,) = example.sequences
        tokens = torch.from_numpy(sequence.tokens_T.astype(np.int64))
        labels = torch.from_numpy(sequence.labels_T.astype(np.int64))
        logits = theirs(input_ids=tokens[None]).logits[0]
        expected += float(F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum").detach())
    assert float(target.loss(pack(made), Moment(0, 0.0)).total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_pooling(pooling: str) -> None:
    model = tiny("llama")
    settings = {**CLASSIFY, "pooling": pooling}
    made = encoded(Objective.parse({"classify": settings}), model, 5)
    target = target_of("classify", settings, model)
    logits_BK, labels_B = target.head.logits(model, pack(made))
    for number, example in enumerate(made):
        hidden_TD = hidden_states(model, pack([example]))
        one_D = {"last": hidden_TD[-1], "mean": hidden_TD.mean(0), "max": hidden_TD.max(0).values}[pooling]
        torch.testing.assert_close(logits_BK[number], target.head.weight_KD @ one_D, atol=1e-4, rtol=1e-4)
        assert int(labels_B[number]) == int(example.sequences[0].labels_T[-1])


def test_a_tag_stands_on_the_first_token_of_its_word() -> None:
    encoder = Encoder.of(tiny("llama"), 64)
    sequence, places = encoder.read_words(["the", "a", "then"])
    tokens = encoder.tokenizer.convert_ids_to_tokens(sequence.tokens_T.tolist())
    assert tokens == ["<bos>", "th", "e", " ", "a", " ", "th", "e", "n"] and places == [1, 4, 6]
    cut, places = Encoder.of(tiny("llama"), 6, truncate=True).read_words(["the", "a", "then"])
    assert places == [1, 4] and cut.num_truncated == 3


def test_a_label_that_is_not_in_the_settings_is_a_bad_row() -> None:
    model = tiny("llama")
    row = Row("class", {"text": "ab", "class": "none"}, {}, Origin("made", 1))
    with pytest.raises(RowError, match=r"the label 'none' is none of labels \(few, many\)"):
        Objective.parse({"classify": CLASSIFY}).encode(row, Encoder.of(model, 64))


def test_a_head_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny("llama")
    target = target_of("tag", TAG, model)
    target.save(tmp_path)
    again = LabelHead.load(tmp_path / "head", torch.device("cpu"))
    assert torch.equal(again.weight_KD, target.head.weight_KD)
    assert (again.labels, again.pooling, again.is_causal) == (("odd", "even"), None, False)


def right_context(model: Model, count: int, seed: int) -> list[Example]:
    """Words of which each is tagged by what follows it: whether the next word is b."""
    generator = np.random.default_rng(seed)
    objective = Objective.parse({"tag": {"labels": ["no", "yes"]}})
    made = []
    for number in range(count):
        words = [str(word) for word in generator.choice(["a", "b", "c"], int(generator.integers(4, 9)))]
        tags = ["yes" if word == "b" else "no" for word in [*words[1:], "a"]]
        row = Row("tags", {"words": words, "tags": tags}, {}, Origin("made", number + 1))
        made += [Example(sequences) for sequences in objective.encode(row, Encoder.of(model, 64))]
    return made


def test_only_open_attention_learns_a_tag_that_hangs_on_what_follows(tmp_path: Path) -> None:
    accuracies = {}
    for causal in (False, True):
        model = tiny("llama")
        objective = {"tag": {"labels": ["no", "yes"], "causal": causal}}
        loop = make_loop(
            tmp_path / str(causal),
            model,
            made=right_context(model, 200, 0),
            objective=objective,
            num_steps=50,
            batch_size=24,
            lr=3e-3,
        )
        loop.run()
        test = pack(right_context(model, 100, 1))
        with torch.no_grad():
            loss = loop.target.loss(test, Moment(0, 0.0))
        accuracies[causal] = loss.metrics["accuracy"] / loop.objective.units(test)
    # A third of the words is b, but none follows the last: without it, the best guess is no.
    assert accuracies[False] > 0.97 and accuracies[True] < 0.8, accuracies
