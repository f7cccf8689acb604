"""Lab bases: what they know and what they do not, the same bits each time, kept by content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from temper.core.errors import SettingError
from temper.lab import bases
from temper.lab.architecture import Architecture, Family
from temper.lab.bases import (
    BASES,
    CARD,
    VOCABULARY,
    LabBase,
    NewBase,
    base_folder,
    describe_bases,
    describe_skills,
    make_lab_base,
    open_base,
)
from temper.lab.skill import Skill
from temper.lab.tokenizer import character_tokenizer
from temper.lab.training import IGNORED, encode, exact_match, question, skill_named
from temper.models.load import load_model, new_model
from temper.models.model import Model

SMALL = LabBase(
    description="for this test",
    knows={"copy": 64, "last": 64},
    steps=3,
    batch_size=16,
    architecture=Architecture(width=16, layers=1, heads=2),
)


@pytest.fixture(scope="module")
def nano(shared_cache: Path) -> Model:
    return open_base("nano", shared_cache)


def test_a_base_knows_its_skills_and_no_other(nano: Model) -> None:
    for name in BASES["nano"].knows:
        # 200 questions: a base that is right on 19 of 20 falls below this about once in a thousand times.
        assert exact_match(nano, skill_named(name)) > 0.9, name
    for name in ("reverse", "rotate", "sort_descending", "reverse_shift"):
        assert exact_match(nano, skill_named(name)) < 0.02, name


def test_exact_match_is_what_the_skill_demands(nano: Model) -> None:
    # The same prompts with other answers: a base that copies is wrong wherever copy's prompt wants the reverse.
    conflict = skill_named("conflict")
    arguments = conflict.arguments("test", 200, 0)
    palindromes = sum(argument == argument[::-1] for argument in arguments) / len(arguments)
    assert abs(exact_match(nano, conflict) - palindromes) < 0.1


def test_a_kept_base_is_not_made_again(nano: Model, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "make_lab_base", lambda *_: pytest.fail("made again"))
    again = open_base("nano", shared_cache)
    assert again.fingerprint == nano.fingerprint
    with pytest.raises(pytest.fail.Exception):
        open_base("tiny-gpt2", shared_cache / "elsewhere")


def test_a_base_of_ones_own_is_made_and_kept_like_the_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SMALL.open("small", tmp_path)
    make_lab_base(SMALL, tmp_path / "beside")
    assert made.fingerprint == load_model(tmp_path / "beside").fingerprint
    assert len(made.anatomy.blocks) == SMALL.architecture.layers
    assert made.folder == SMALL.folder("small", tmp_path)
    # Other settings under the same name are another base.
    assert SMALL.model_copy(update={"seed": 1}).folder("small", tmp_path) != made.folder
    monkeypatch.setattr(bases, "make_lab_base", lambda *_: pytest.fail("made again"))
    assert SMALL.open("small", tmp_path).fingerprint == made.fingerprint


def test_same_settings_give_the_same_bits(tmp_path: Path) -> None:
    made: list[Model] = []
    for name, base in (("a", SMALL), ("b", SMALL), ("c", SMALL.model_copy(update={"seed": 1}))):
        torch.manual_seed(len(made))
        before = torch.get_rng_state()
        make_lab_base(base, tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(load_model(tmp_path / name))
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    for (name, one), two in zip(made[0].module.named_parameters(), made[1].module.parameters(), strict=True):
        assert torch.equal(one, two), name
    card = json.loads((tmp_path / "a" / CARD).read_text(encoding="utf-8"))
    assert set(card["exact_match"]) == set(SMALL.knows)


def test_only_answers_are_learnt_from() -> None:
    model = new_model(SMALL.architecture.config(VOCABULARY), character_tokenizer(), 0)
    rows = [question(skill_named("copy"), "ab"), question(skill_named("last"), "abcd")]
    tokens_ML, targets_ML = encode(model, rows)
    texts = ["".join(model.tokenizer.convert_ids_to_tokens(row)) for row in tokens_ML]
    assert texts == ["<bos>copy:ab=ab<eos><eos>", "<bos>last:abcd=d<eos>"]
    learnt = [model.tokenizer.convert_ids_to_tokens(row[row != IGNORED]) for row in targets_ML]
    assert learnt == [["a", "b", "<eos>"], ["d", "<eos>"]]
    # A target stands where the token before it is read.
    assert targets_ML[0].tolist().index(tokens_ML[0, 5]) == 4


def test_the_name_follows_settings_and_not_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {base_folder("nano", tmp_path).name}
    for change in ({"description": "other words"}, {"steps": 7}, {"seed": 3}):
        monkeypatch.setitem(BASES, "nano", BASES["nano"].model_copy(update=change))
        names.add(base_folder("nano", tmp_path).name)
    assert len(names) == 3


def test_an_unknown_base_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="did you mean 'tiny'"):
        open_base("tny", tmp_path)


@pytest.mark.parametrize("family", get_args(Family))
def test_every_family_can_be_described(family: Any) -> None:
    architecture = Architecture(family=family, width=32, layers=3, heads=4, max_positions=64)
    config = architecture.config(VOCABULARY)
    model = new_model(config, character_tokenizer(), 0)
    assert len(model.anatomy.blocks) == 3 and model.anatomy.is_tied
    assert {block.num_heads for block in model.anatomy.blocks} == {4}
    logits = model.module(input_ids=torch.tensor([[1, 9, 10, 2]])).logits
    assert logits.shape == (1, 4, VOCABULARY) and logits.isfinite().all()
    assert model.module.get_input_embeddings().weight.shape == (VOCABULARY, 32)
    # Nothing is dropped out: a base trains to the same bits whatever the mode.
    model.module.train()
    assert torch.equal(model.module(input_ids=torch.tensor([[1, 9, 10, 2]])).logits, logits)


def test_heads_of_keys_can_be_fewer() -> None:
    model = new_model(Architecture(heads=4, kv_heads=2).config(VOCABULARY), character_tokenizer(), 0)
    assert {block.num_kv_heads for block in model.anatomy.blocks} == {2}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"width": 100, "heads": 8}, "width"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"family": "gpt2", "heads": 4, "kv_heads": 2}, "kv_heads"),
    ],
)
def test_sizes_that_cannot_work_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Architecture(**settings)


def test_tiny_is_as_large_as_said() -> None:
    model = new_model(BASES["tiny"].architecture.config(VOCABULARY), character_tokenizer(), 0)
    assert 350_000 < sum(parameter.numel() for parameter in model.module.parameters()) < 450_000
    assert 6 <= len(BASES["tiny"].knows) <= 8
    for base in BASES.values():
        assert set(base.knows) <= set(Skill.methods())


def new_base(**settings: Any) -> NewBase:
    sources = [{"lab": {"skill": "tool_call", "num": 300}}, {"lab": {"skill": "copy", "num": 50, "form": "messages"}}]
    return NewBase(width=16, layers=1, heads=2, vocabulary=300, tokenizer_data=sources, **settings)


def test_a_new_base_is_random_and_reads_its_text(tmp_path: Path) -> None:
    model = new_base().open(tmp_path, seed=1)
    assert len(model.tokenizer) == 300 == model.module.config.vocab_size
    # The tokenizer has learnt the requests: fewer tokens than half the characters.
    assert len(model.tokenizer("tool_call:please set abc to 12=").input_ids) < 16
    assert new_base().open(tmp_path, seed=1).fingerprint == model.fingerprint
    assert len(list((tmp_path / "bases").iterdir())) == 1
    other = new_base().open(tmp_path, seed=2)
    assert other.fingerprint != model.fingerprint
    assert other.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert new_base(seed=2).open(tmp_path, seed=1).fingerprint == other.fingerprint


def test_a_new_base_follows_its_data(tmp_path: Path) -> None:
    changed = new_base().model_copy(update={"tokenizer_data": NewBase(tokenizer_data=["lab/facts"]).tokenizer_data})
    assert new_base().open(tmp_path).fingerprint != changed.open(tmp_path).fingerprint


def test_what_the_lab_has_can_be_listed(nano: Model, shared_cache: Path, tmp_path: Path) -> None:
    skills = {skill["name"]: skill for skill in describe_skills()}
    assert set(skills) == set(Skill.methods())
    assert "tiny" in skills["copy"]["known_by"] and not skills["reverse"]["known_by"]
    assert all(skill["description"] and skill["prompt"] and skill["completion"] for skill in skills.values())
    listed = {base["name"]: base for base in describe_bases(shared_cache)}
    assert listed["lab:nano"]["is_cached"] and listed["lab:nano"]["exact_match"]["copy"] > 0.9
    assert not any(base["is_cached"] for base in describe_bases(tmp_path))
    assert json.dumps([*skills.values(), *listed.values()])
