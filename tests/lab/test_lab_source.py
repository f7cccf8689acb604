"""Rows of the source `lab`: their forms, noise with known truth, and names by content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from temper.data.example import Row
from temper.data.source import Source
from temper.lab.skill import Skill

HERE = Path()


def rows(written: Any, split: Any = "train") -> list[Row]:
    return list(Source.parse(written).open(split, HERE))


def lab(**settings: Any) -> dict[str, Any]:
    return {"lab": {"num": 600, "num_test": 100, **settings}}


def test_shorthands() -> None:
    assert Source.parse("lab/copy") == Source.parse({"lab": {"skill": "copy"}})
    assert Source.parse("lab/sort/messages") == Source.parse({"lab": {"skill": "sort", "form": "messages"}})
    assert Source.parse("lab/pairs") == Source.parse({"lab": {"skill": "reverse", "form": "preference"}})
    assert [Source.parse(text).label for text in ("lab/copy", "lab/pairs")] == ["lab/copy", "lab/reverse/preference"]


@pytest.mark.parametrize("name", sorted(Skill.methods()))
def test_rows_ask_and_answer(name: str) -> None:
    skill = Skill.parse(name)
    for row in rows(lab(skill=name, num=50)):
        argument = row.content["prompt"].removeprefix(f"{skill.word}:").removesuffix("=")
        assert row.format == "completion" and row.content["completion"] == skill.answer(argument)
        assert row.columns == {"task": name, "level": skill.level(argument), "source": "lab"}


def test_splits_have_their_sizes_and_share_no_prompt() -> None:
    train, test = rows(lab(skill="copy")), rows(lab(skill="copy"), "test")
    assert (len(train), len(test)) == (600, 100)
    assert not {row.content["prompt"] for row in train} & {row.content["prompt"] for row in test}


def test_forms_say_the_same() -> None:
    plain = rows(lab(skill="sort"))
    for row, chat, text in zip(
        plain, rows(lab(skill="sort", form="messages")), rows(lab(skill="sort", form="text")), strict=True
    ):
        prompt, answer = row.content["prompt"], row.content["completion"]
        assert [turn["content"] for turn in chat.content["messages"]] == [prompt, answer]
        assert [turn["role"] for turn in chat.content["messages"]] == ["user", "assistant"]
        assert text.content == {"text": prompt + answer} and text.format == "text"


def test_a_preference_prefers_the_truth_by_the_asked_number_of_errors() -> None:
    for num_errors in (1, 2):
        pairs = rows(lab(skill="reverse", form="preference", num_errors=num_errors))
        for row, true in zip(pairs, rows(lab(skill="reverse")), strict=True):
            chosen, rejected = row.content["chosen"], row.content["rejected"]
            assert row.format == "preference" and chosen == true.content["completion"]
            assert sum(a != b for a, b in zip(chosen, rejected, strict=True)) == num_errors


def test_labels_are_true_of_about_half() -> None:
    labelled = rows(lab(skill="copy", form="label"))
    for row, true in zip(labelled, rows(lab(skill="copy")), strict=True):
        assert row.content["label"] is (row.content["completion"] == true.content["completion"])
    # 600 fair coins: 4 standard deviations are 49.
    assert abs(sum(row.content["label"] for row in labelled) - 300) < 49


@pytest.mark.parametrize("form", ["completion", "preference", "label"])
def test_noise_spoils_its_share_and_records_the_truth(form: str) -> None:
    clean, noisy = rows(lab(skill="copy", form=form)), rows(lab(skill="copy", form=form, noise=0.3))
    truths = [row.content["completion"] for row in rows(lab(skill="copy"))]
    assert [row.columns["truth"] for row in noisy] == truths
    for a, b in zip(clean, noisy, strict=True):
        assert (a.content != b.content) is b.columns["is_noisy"]
        assert a.content["prompt"] == b.content["prompt"]
    # 600 draws at 0.3: 4 standard deviations are 45.
    assert abs(sum(row.columns["is_noisy"] for row in noisy) - 180) < 45
    assert all("truth" not in row.columns for row in clean)


def test_the_test_split_has_no_noise() -> None:
    assert [row.content for row in rows(lab(skill="copy", noise=0.9), "test")] == [
        row.content for row in rows(lab(skill="copy"), "test")
    ]


def test_names_follow_settings() -> None:
    ways: list[Any] = [
        "lab/copy",
        {"lab": {"skill": {"copy": {}}}},
        "lab/reverse",
        {"lab": {"skill": "copy", "seed": 1}},
        {"lab": {"skill": {"rotate": {"by": 1}}}},
        "lab/rotate",
    ]
    names = [Source.parse(written).fingerprint() for written in ways]
    assert names[0] == names[1] and len(set(names)) == 5
    copy = Source.parse("lab/copy")
    assert copy.open("train", HERE).fingerprint != copy.open("test", HERE).fingerprint


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"skill": "cpy"}, "did you mean 'copy'"),
        ({"skill": "facts", "lengths": [1, 2]}, "facts has no levels"),
        ({"skill": "copy", "lengths": [0, 2]}, "from 1 to 64"),
        ({"skill": "copy", "lengths": [5, 3]}, "not a range"),
        ({"skill": "copy", "noise": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(written: dict[str, Any], says: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        Source.parse({"lab": written})
    assert caught.value.context is not None and says in str(caught.value.context["errors"])
