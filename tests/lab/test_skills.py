"""Skills tell the truth, and their splits cannot overlap."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper.lab.skill import LETTERS, TEST_SHARE, Skill, corrupt, is_held_out
from temper.lab.skills.requests import TOOLS, ToolCall
from temper.lab.skills.strings import Rotate
from temper.lab.skills.worlds import Facts, Translate, TwoHop, lexicon, world
from temper.lab.tokenizer import WORDS

SKILLS = Skill.methods()
KNOWN = [
    ("copy", "hbda", "hbda"),
    ("reverse", "hbda", "adbh"),
    ("shift", "hbdp", "icea"),
    ("swap", "hbda", "abdh"),
    ("swap", "h", "h"),
    ("duplicate", "hb", "hhbb"),
    ("last", "hbda", "a"),
    ("sort", "hbdab", "abbdh"),
    ("sort_descending", "hbdab", "hdbba"),
    ("count", "hbdab", "5"),
    ("rotate", "hbda", "dahb"),
    ("rotate", "h", "h"),
    ("reverse_shift", "hbdp", "aeci"),
    ("conflict", "hbda", "adbh"),
    ("add", "95+7", "102"),
    ("look_up", "a3,k7,c1?k", "7"),
    ("tool_call", "please set lamp to 7", "set(lamp,7)"),
    ("tool_call", "set fan to 40 in 5 minutes", "wait(5,set(fan,40))"),
    ("tool_call", "sum of 12 and 3", "add(12,3)"),
    ("tool_call", "what is oven", "get(oven)"),
]


@pytest.mark.parametrize(("name", "argument", "answer"), KNOWN)
def test_answers_are_those_worked_out_by_hand(name: str, argument: str, answer: str) -> None:
    assert SKILLS[name]().answer(argument) == answer


def test_there_are_enough_skills() -> None:
    assert len(SKILLS) >= 12
    assert all((method.__doc__ or "").strip() for method in SKILLS.values())


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_splits_never_overlap_whatever_the_seeds(name: str) -> None:
    skill = SKILLS[name]()
    train = {argument for seed in range(3) for argument in skill.arguments("train", 700, seed)}
    test = {argument for seed in range(3) for argument in skill.arguments("test", 300, seed)}
    assert train and test and not train & test
    assert not {skill.prompt(argument) for argument in train} & {skill.prompt(argument) for argument in test}


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_arguments_are_different_and_seeded(name: str) -> None:
    skill = SKILLS[name]()
    once, again, other = (skill.arguments("train", 200, seed) for seed in (0, 0, 1))
    assert once == again != other
    assert len(set(once)) == len(once) == 200
    # A shorter draw is the beginning of a longer one where arguments are drawn one by one.
    if skill.domain() is None:
        assert skill.arguments("train", 50, 0) == once[:50]


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_levels_are_those_asked_for(name: str) -> None:
    skill = SKILLS[name]()
    if skill.lengths is None:
        assert {skill.level(argument) for argument in skill.arguments("train", 500, 0)} <= {1, 2}
    else:
        low, high = skill.lengths
        levels = {skill.level(argument) for argument in skill.arguments("train", 500, 0)}
        assert levels == set(range(low, high + 1))
        only = skill.arguments("train", 20, 0, (high, high))
        assert {skill.level(argument) for argument in only} == {high}


def test_what_is_held_out_for_one_string_skill_is_held_out_for_all() -> None:
    held_out = set(SKILLS["reverse"]().arguments("test", 500, 0))
    for name in ("copy", "shift", "reverse_shift", "conflict"):
        assert not held_out & set(SKILLS[name]().arguments("train", 4000, 7))


def test_the_held_out_share_is_as_said() -> None:
    generator = random.Random(0)
    drawn = {"".join(generator.choices(LETTERS, k=6)) for _ in range(20_000)}
    share = sum(map(is_held_out, drawn)) / len(drawn)
    assert abs(share - TEST_SHARE) < 4 * (TEST_SHARE * (1 - TEST_SHARE) / len(drawn)) ** 0.5


def test_a_skill_that_runs_out_gives_what_it_has() -> None:
    # 16 letters and 256 pairs; a fifth or so is held out.
    copy = SKILLS["copy"]()
    both = copy.arguments("train", 400, 0, (1, 2)) + copy.arguments("test", 400, 0, (1, 2))
    assert len(both) == len(set(both)) <= 16 + 256
    assert len(both) > 250


def test_facts_in_the_test_are_all_taught_in_the_other_wording() -> None:
    skill = Facts()

    def fact(argument: str) -> tuple[str, str]:
        words = argument.split()
        return (words[2], words[0]) if words[1] == "of" else (words[0], words[1])

    train, test = skill.arguments("train", 10_000, 0), skill.arguments("test", 10_000, 0)
    assert {fact(argument) for argument in train} == set(world())
    assert len(train) + len(test) == 2 * len(world())
    assert len({fact(argument) for argument in test}) == len(test) > 0
    assert {"of" in argument for argument in test} == {True, False}


def test_two_hop_questions_stand_on_facts_that_train_states() -> None:
    skill = TwoHop()
    train, test = skill.arguments("train", 10_000, 0), skill.arguments("test", 10_000, 0)
    single = {tuple(argument.split()) for argument in train if skill.level(argument) == 1}
    assert single == set(world())
    assert {skill.level(argument) for argument in test} == {2}
    for argument in test:
        person, first, second = argument.split()
        middle = skill.answer(f"{person} {first}")
        assert (person, first) in single and (middle, second) in single
        assert skill.answer(argument) == skill.answer(f"{middle} {second}")


def test_translation_follows_the_grammar() -> None:
    kinds: dict[str, list[tuple[str, str]]] = {}
    for word, (kind, translation) in lexicon().items():
        kinds.setdefault(kind, []).append((word, translation))
    (noun, noun_too), (other, other_too) = kinds["noun"][:2]
    (verb, verb_too), (adjective, adjective_too) = kinds["verb"][0], kinds["adjective"][0]
    skill = Translate()
    assert skill.answer(f"{noun} {verb}") == f"{noun_too} {verb_too}"
    assert skill.answer(f"{adjective} {noun} {verb} {other}") == f"{noun_too} {adjective_too} {other_too} {verb_too}"
    assert len({translation for _, translation in lexicon().values()}) == len(lexicon())


def test_every_wording_of_a_request_is_read_back() -> None:
    skill = ToolCall()
    for wording, call in TOOLS:
        words = {"name": "abba", "number": 4, "other": 71}
        assert skill.answer(wording.format(**words)) == call.format(**words)


def test_a_skill_has_settings() -> None:
    assert Skill.parse({"rotate": {"by": 1}}) == Rotate(by=1)
    assert Rotate(by=1).answer("hbda") == "bdah"


@given(
    answer=st.text(LETTERS + string.digits + "( ,)", min_size=1).filter(lambda text: any(map(str.isalnum, text))),
    seed=st.integers(0, 1000),
    num_errors=st.integers(1, 5),
)
def test_a_corrupted_answer_is_wrong_in_just_as_many_places(answer: str, seed: int, num_errors: int) -> None:
    wrong = corrupt(answer, random.Random(seed), num_errors)
    places = sum(character.isalnum() for character in answer)
    assert len(wrong) == len(answer)
    assert sum(a != b for a, b in zip(answer, wrong, strict=True)) == min(num_errors, places)
    assert all(a.isdigit() == b.isdigit() for a, b in zip(answer, wrong, strict=True))


def test_every_skill_has_its_word() -> None:
    # Not needed for a skill to work; but those that are here were meant to have one token.
    assert {f"{method().word}:" for method in SKILLS.values()} == set(WORDS)
