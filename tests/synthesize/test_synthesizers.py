"""What every synthesizer keeps, and S3FT and LLM2LLM against their definitions with a model whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from families import tiny
from temper.core.errors import DataError, SettingError
from temper.data.example import Origin, Row
from temper.data.rows import Rows
from temper.data.source import Source
from temper.lab.skill import Skill, is_held_out
from temper.measure.examples import to_question
from temper.models.model import Model
from temper.synthesize import base
from temper.synthesize.base import Round, Synthesizer
from temper.synthesize.llm2llm import LLM2LLM
from temper.synthesize.s3ft import S3FT
from temper.synthesize.teachers.base import Teacher

SYNTHESIZERS = {name: method.model_validate(dict(method.example)) for name, method in Synthesizer.methods().items()}


def lab_rows(tmp_path: Any, form: str = "completion", num: int = 6) -> Rows:
    return Source.parse({"lab": {"skill": "copy", "num": num, "form": form}}).open("train", tmp_path)


def says(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], str]) -> list[str]:
    """Let the model answer each prompt by a function; return the prompts as they come."""
    asked: list[str] = []

    def generate(model: Model, prompts: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        texts = [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in prompts]
        asked.extend(texts)
        return [model.tokenizer(answer(text), add_special_tokens=False)["input_ids"] for text in texts]

    monkeypatch.setattr(base, "generate", generate)
    return asked


def contents(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [
        (str(row.content["prompt"]), str(row.content["completion"]), str(row.columns["answer_from"])) for row in rows
    ]


@pytest.mark.parametrize("name", SYNTHESIZERS)
@pytest.mark.parametrize("form", ["completion", "messages"])
def test_rows_are_made_in_the_seeds_own_format_and_the_same_again(tmp_path: Any, name: str, form: str) -> None:
    rows = lab_rows(tmp_path, form)
    one, other = (SYNTHESIZERS[name].make(Round(rows, tiny("llama"), seed=3)) for _ in range(2))
    assert one == other and one.rows
    assert {row.format for row in one.rows} == {form}
    assert all(isinstance(count, int) for count in one.counts.values())


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_a_question_too_long_for_the_model_stops_or_is_left_out(tmp_path: Any, name: str) -> None:
    record = {"prompt": "z" * 200, "completion": "b", "task": "copy", "level": 3}
    long = Rows.from_list([record], "completion", "long", "long")
    with pytest.raises(DataError, match=r"long:1: .* do not fit into 128; shorten or remove the row"):
        SYNTHESIZERS[name].make(Round(long, tiny("llama"), seed=0))
    made = SYNTHESIZERS[name].make(Round(long, tiny("llama"), seed=0, on_bad_rows="skip"))
    assert all(row.content["completion"] == "b" for row in made.rows)


QUESTIONS = [
    {"prompt": "2+2=", "completion": "4", "task": "sums"},
    {"prompt": "3+3=", "completion": "6", "task": "sums"},
    {"prompt": "5+5=", "completion": "10", "task": "sums"},
]


def test_s3ft_takes_its_own_right_answer_then_a_right_paraphrase_then_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Mapping[str, str] = {
        "2+2=": "it is 4",
        "3+3=": "it is 7",
        "5+5=": "it is 11",
        "again 3+3= 6": "well, 6",
        "again 5+5= 10": "well, 12",
    }
    asked = says(monkeypatch, lambda prompt: answers[prompt])
    method = S3FT.model_validate({"verifier": {"exact": {"extract": r"\d+"}}, "paraphrase": "again {prompt} {answer}"})
    made = method.make(Round(Rows.from_list(QUESTIONS, "completion", "q", "q"), tiny("llama"), seed=0))
    assert contents(made.rows) == [
        ("2+2=", "it is 4", "own"),
        ("3+3=", "well, 6", "paraphrase"),
        ("5+5=", "10", "gold"),
    ]
    assert made.counts == {"own": 1, "paraphrase": 1, "gold": 1}
    assert asked == list(answers), "only what was wrong is asked again"
    assert all(row.columns["task"] == "sums" for row in made.rows)


def test_s3ft_without_a_paraphrase_and_with_one_that_does_not_fit_keeps_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, lambda prompt: "wrong")
    rows = Rows.from_list(QUESTIONS, "completion", "q", "q")
    for paraphrase in (None, "x" * 200 + "{answer}"):
        asked.clear()
        made = S3FT(paraphrase=paraphrase).make(Round(rows, tiny("llama"), seed=0))
        assert made.counts == {"own": 0, "paraphrase": 0, "gold": 3} and len(asked) == 3
    with pytest.raises(ValueError, match=r"has no place for the answer; write \{answer\} in it"):
        S3FT(paraphrase="again")


def test_s3ft_answers_conversations_in_their_last_turn(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lab_rows(tmp_path, "messages", num=1)
    (row,) = rows.take([0])
    truth = row.content["messages"][-1]["content"]
    says(monkeypatch, lambda prompt: f" {truth}")
    (made,) = S3FT().make(Round(rows, tiny("llama"), seed=0)).rows
    assert made.content["messages"] == [row.content["messages"][0], {"role": "assistant", "content": f" {truth}"}]


@pytest.mark.parametrize("form", ["completion", "messages"])
def test_llm2llm_never_repeats_a_question(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """The shortest strings are soon used up: of one letter there are sixteen, some of them held out."""
    source = {"lab": {"skill": "copy", "num": 8, "lengths": [1, 1], "form": form}}
    rows = Source.parse(source).open("train", tmp_path)
    says(monkeypatch, lambda prompt: "zzz")
    made = LLM2LLM(per_error=4).make(Round(rows, tiny("llama"), seed=0))
    questions = [to_question(row).text for row in (*rows, *made.rows)]
    assert made.counts["wrong"] == 8 and len(set(questions)) == len(questions) <= 16


def test_llm2llm_expands_what_was_wrong_and_nothing_else(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lab_rows(tmp_path, num=8)
    right = {str(row.content["prompt"]): str(row.content["completion"]) for row in rows}
    wrong = list(right)[2:5]
    says(monkeypatch, lambda prompt: "zzz" if prompt in wrong else right[prompt])
    made = LLM2LLM(per_error=2).make(Round(rows, tiny("llama"), seed=0))
    assert made.counts == {"asked": 8, "wrong": 3, "made": len(made.rows)} and 3 <= len(made.rows) <= 6
    levels = sorted(row.columns["level"] for row in rows if row.content["prompt"] in wrong)
    assert set(row.columns["level"] for row in made.rows) == set(levels)
    prompts = [str(row.content["prompt"]) for row in made.rows]
    assert len(set(prompts)) == len(prompts) and not set(prompts) & set(right)

    says(monkeypatch, lambda prompt: right[prompt])
    assert LLM2LLM().make(Round(rows, tiny("llama"), seed=0)).rows == []


@pytest.mark.parametrize("skill", list(Skill.methods()))
def test_the_labs_teacher_writes_true_answers_to_training_questions_only(tmp_path: Any, skill: str) -> None:
    (seed,) = Source.parse({"lab": {"skill": skill, "num": 1}}).open("train", tmp_path).take([0])
    teacher = Teacher.parse("lab")
    rows = teacher.similar(seed, 5, seed=1)
    assert 0 < len(rows) <= 5 and rows == teacher.similar(seed, 5, seed=1)
    known = Skill.parse(skill)
    for row in rows:
        argument = str(row.content["prompt"]).removeprefix(f"{known.word}:").removesuffix("=")
        assert row.content["completion"] == known.answer(argument)
        assert not known.in_test(argument)
        if known.domain() is None:
            assert row.columns["level"] == seed.columns["level"] and not is_held_out(argument)


def test_of_a_row_without_a_level_all_levels_of_the_skill_are_written() -> None:
    record = {"prompt": "copy:abc=", "completion": "abc", "task": "copy"}
    (seed,) = Rows.from_list([record], "completion", "q", "q").take([0])
    assert {row.columns["level"] for row in Teacher.parse("lab").similar(seed, 60, seed=0)} == {3, 4, 5, 6}


def test_a_row_of_no_skill_cannot_be_taught() -> None:
    row = Rows.from_list(QUESTIONS, "completion", "q", "q").take([0])[0]
    with pytest.raises(SettingError, match="does not know the task 'sums' of q:1; teach rows of the lab"):
        Teacher.parse("lab").similar(row, 1, seed=0)
    # Of what level the questions should be is not made up.
    row = Row("completion", {"prompt": "copy:a=", "completion": "a"}, {"task": "copy", "level": "hard"}, Origin("q", 2))
    with pytest.raises(SettingError, match="cannot write questions of the level 'hard' of q:2"):
        Teacher.parse("lab").similar(row, 1, seed=0)
