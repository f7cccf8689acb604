"""Suites against naive loops, and against a model whose answers are known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from families import tiny
from measuring import chain_model, write_rows
from temper.core.errors import DataError, SettingError
from temper.data.encode import Encoder
from temper.data.example import Row
from temper.data.source import Source
from temper.measure.base import Score, Subject, Suite, from_plain, plain, with_defaults
from temper.measure.exact_match import ExactMatch
from temper.measure.examples import to_question
from temper.measure.function import Function
from temper.measure.multiple_choice import MultipleChoice
from temper.measure.perplexity import Perplexity
from temper.models.model import Model

TEXTS = [{"text": text} for text in ("the hen", "in a hot bath, he thinks.", "a", "Why? (because)" * 5)]
QUESTIONS = [
    {"prompt": "a=", "completion": "ok"},
    {"prompt": "bcd=", "completion": "ok"},
    {"prompt": "e=", "completion": "no"},
    {"prompt": "fg=", "completion": "OK!"},
    {"prompt": "hi=", "completion": "ok"},
]
OK = ("=", "o", "k", "<eos>")
"""after `=` comes `ok`, and the end"""


def source(written: str | dict[str, Any]) -> Source:
    return Source.parse(written)


def logprobs(model: Model, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first, from the whole matrix of logits of one document."""
    with torch.no_grad():
        logits = model.module(torch.tensor([list(tokens)])).logits[0].double()
    table = logits.log_softmax(-1)
    return [float(table[place, token]) for place, token in enumerate(tokens[1:])]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_perplexity_equals_a_loop_over_documents(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    path = write_rows(tmp_path / "texts.jsonl", TEXTS)
    for tokens, key in (("all", "plain"), ("supervised", "supervised")):
        score = Perplexity(source=source(path), tokens=tokens, max_length=100).measure(Subject(model), tmp_path)
        encoder = Encoder(model.tokenizer, 100)
        rows = [Row("text", text, {}, None) for text in TEXTS]  # type: ignore[arg-type]
        sequences = [encoder.plain(row)[0] if key == "plain" else encoder.supervised(row) for row in rows]
        naive = [logprobs(model, sequence.tokens_T.tolist()) for sequence in sequences]
        assert score.weights == tuple(float(len(own)) for own in naive)
        # float32 log-probabilities of a few nats, packed against one by one
        assert score.scores == pytest.approx([-sum(own) / len(own) for own in naive], abs=2e-5)
        assert (score.unit, score.transform, score.higher_is_better) == ("perplexity", "exp", False)


def test_perplexity_counts_the_completion_only_and_splits_what_is_long(tmp_path: Path) -> None:
    model = tiny()
    path = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    score = Perplexity(source=source(path)).measure(Subject(model), tmp_path)
    assert score.weights == (3.0, 3.0, 3.0, 4.0, 3.0)
    # bos, b, c, d, = / o, k, eos
    ids = [*model.tokenizer("bcd=ok").input_ids, model.tokenizer.eos_token_id]
    assert score.scores[1] == pytest.approx(-sum(logprobs(model, ids)[-3:]) / 3, abs=2e-5)
    long = write_rows(tmp_path / "long.jsonl", [{"text": "the hen in a bath " * 20}])
    pieces = Perplexity(source=source(long), tokens="all", max_length=32).measure(Subject(model), tmp_path)
    whole = Encoder(model.tokenizer, 10**6).plain(Row("text", {"text": "the hen in a bath " * 20}, {}, None))[0]  # type: ignore[arg-type]
    assert pieces.weights == (len(whole.tokens_T) - 1.0,)


def test_too_long_rows_stop_or_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a=", "completion": "ok"}, {"prompt": "x" * 200, "completion": "ok"}]
    path, subject = write_rows(tmp_path / "rows.jsonl", rows), Subject(chain_model(OK))
    for kind in (Perplexity, ExactMatch):
        with pytest.raises(DataError, match=r"rows\.jsonl:2"):
            kind(source=source(path)).measure(subject, tmp_path)
        score = kind(source=source(path), on_bad_rows="skip").measure(subject, tmp_path)
        assert (len(score.scores), score.num_left_out) == (1, 1)


def test_messages_with_tool_calls_are_scored(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    turns = [{"role": "user", "content": "x"}, call, {"role": "tool", "content": "3"}]
    for last in ({"role": "assistant", "content": "3"}, call):
        question = to_question(Row("messages", {"messages": [*turns, last]}, {}, None))  # type: ignore[arg-type]
        assert '"add"' in question.text and question.answer == (
            "3" if last is not call else '[{"function": {"name": "add", "arguments": {"a": 1}}}]'
        )


def exact(tmp_path: Path, rows: Sequence[dict[str, Any]] = QUESTIONS, **settings: Any) -> Score:
    path = write_rows(tmp_path / "questions.jsonl", rows)
    return ExactMatch(source=source(path), reserve=0, **settings).measure(Subject(chain_model(OK)), tmp_path)


def test_exact_match_of_a_model_that_always_answers_ok(tmp_path: Path) -> None:
    score = exact(tmp_path)
    assert score.correct == (True, True, False, False, True)
    assert score.scores == (1.0, 1.0, 0.0, 0.0, 1.0)
    sample = score.samples[2]
    assert (sample.prompt, sample.expected, sample.output, sample.score) == ("e=", "no", "ok", 0.0)


def test_exact_match_forgives_what_it_is_told_to(tmp_path: Path) -> None:
    assert exact(tmp_path, ignore_case=True).correct == (True, True, False, False, True)
    assert exact(tmp_path, ignore_case=True, ignore_punctuation=True).correct == (True, True, False, True, True)
    spaced = [{"prompt": "a=", "completion": " ok\n"}]
    assert exact(tmp_path, spaced).correct == (True,) and exact(tmp_path, spaced, strip=False).correct == (False,)


def test_exact_match_extracts_in_both_and_reads_a_column(tmp_path: Path) -> None:
    rows = [{"prompt": "a=", "completion": "so it is k, then k", "short": "o"}]
    assert exact(tmp_path, rows, extract="[ko]").correct == (True,)
    assert exact(tmp_path, rows, extract="([a-z]+)").correct == (False,)
    assert exact(tmp_path, rows, answer="short", extract="^(o)k?$").correct == (True,)
    assert exact(tmp_path, rows, extract="zzz").correct == (False,)
    assert exact(tmp_path, rows, answer="short", until=("k",)).correct == (True,)
    with pytest.raises(DataError, match="no column 'shrt'"):
        exact(tmp_path, rows, answer="shrt")
    with pytest.raises(ValidationError, match="no regular expression"):
        ExactMatch(source=source("x.jsonl"), extract="(")


def test_answers_stop_at_max_new_tokens(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "questions.jsonl", [{"prompt": "a=", "completion": "ok"}])
    endless = Subject(chain_model(("=", "o", "k", "o")))
    outputs = [
        ExactMatch(source=source(path), max_new_tokens=limit).measure(endless, tmp_path).samples[0].output
        for limit in (1, 5, None)
    ]
    assert outputs == ["o", "okoko", "okokokokokok"]


def test_messages_are_asked_through_the_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": turns}])
    # The generation prompt ends in `>`.
    model = chain_model((">", "o", "k", "<eos>"))
    score = ExactMatch(source=source(path)).measure(Subject(model), tmp_path)
    assert score.correct == (True,) and score.samples[0].prompt == "user: hi"


@pytest.mark.parametrize("normalise", ["none", "bytes", "tokens"])
def test_multiple_choice_equals_a_naive_loop(normalise: str, tmp_path: Path) -> None:
    model = tiny("qwen3", seed=3)
    choices = [["ok", "not at all", "a"], ["yes", "no!", "(perhaps)"], ["1", "22", "333"], ["he", "the hen", "in"]] * 3
    rows = [
        {"text": f"question {number}: ", "choices": own, "answer": number % 3} for number, own in enumerate(choices)
    ]
    path = write_rows(tmp_path / "choices.jsonl", rows)
    suite = MultipleChoice(source=source(path), normalise=normalise, reserve=0)
    score = suite.measure(Subject(model), tmp_path)
    naive = []
    for row in rows:
        likelihoods = []
        context = model.tokenizer(row["text"]).input_ids
        for choice in row["choices"]:
            answer = model.tokenizer(choice, add_special_tokens=False).input_ids
            own = logprobs(model, context + answer)[-len(answer) :]
            likelihoods.append(sum(own) / {"none": 1, "bytes": len(choice.encode()), "tokens": len(own)}[normalise])
        naive.append(likelihoods.index(max(likelihoods)) == row["answer"])
    assert score.correct == tuple(naive)
    assert True in naive and False in naive


def test_multiple_choice_of_a_model_that_finds_ok_likeliest(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a=", "completion": "ok", "choices": ["no", "ok"]},
        {"prompt": "b=", "completion": "?", "choices": ["ok", "no"], "answer": "ok"},
        {"prompt": "c=", "completion": "?", "choices": ["ok", "no"], "answer": 1},
        {"prompt": "d=", "completion": "?", "choices": ["1", "ok"], "answer": "1"},
    ]
    path = write_rows(tmp_path / "choices.jsonl", rows)
    score = MultipleChoice(source=source(path), reserve=0).measure(Subject(chain_model(OK)), tmp_path)
    assert score.correct == (True, True, False, False)
    assert [sample.output for sample in score.samples] == ["ok"] * 4
    assert [sample.expected for sample in score.samples] == ["ok", "ok", "no", "1"]


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["a"], "answer": 0},
        {"choices": "ab", "answer": 0},
        {"choices": ["a", "a"], "answer": 0},
        {"choices": ["a", "b"], "answer": 2},
        {"choices": ["a", "b"], "answer": "c"},
        {"choices": ["a", "b"], "answer": True},
        {"choices": ["a", "b"]},
    ],
)
def test_choices_that_cannot_be_scored_name_file_and_line(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "choices.jsonl", [{"text": "q", **row}])
    with pytest.raises(DataError, match=r"choices\.jsonl:1"):
        MultipleChoice(source=source(path)).measure(Subject(chain_model(OK)), tmp_path)


def test_functions_by_path_and_by_module(tmp_path: Path) -> None:
    code = tmp_path / "metrics.py"
    code.write_text(
        "def length(prompt, output, row): return len(prompt) + len(output) + row['bonus']\n"
        "def is_ok(prompt, output, row): return output == row['completion']\n"
        "def broken(prompt, output, row): return float('nan')\n"
    )
    path = write_rows(tmp_path / "questions.jsonl", [{**row, "bonus": 10} for row in QUESTIONS])
    settings: dict[str, Any] = {"source": source(path), "reserve": 0}
    subject = Subject(chain_model(OK))
    lengths = Function(**settings, function=f"{code}:length", unit="number", higher_is_better=False)
    score = lengths.measure(subject, tmp_path)
    assert score.scores == (14.0, 16.0, 14.0, 15.0, 15.0) and score.correct is None
    assert (score.metric, score.unit, score.higher_is_better) == ("length", "number", False)
    assert Function(**settings, function=f"{code}:is_ok").measure(subject, tmp_path).correct == (
        True,
        True,
        False,
        False,
        True,
    )
    with pytest.raises(SettingError, match="returned nan"):
        Function(**settings, function=f"{code}:broken").measure(subject, tmp_path)
    with pytest.raises(SettingError, match=r"returned 14, not 0 to 1"):
        Function(**settings, function=f"{code}:length").measure(subject, tmp_path)
    for wrong, message in ((f"{code}:lenght", "did you mean 'length'"), ("nowhere:x", "cannot be imported")):
        with pytest.raises(SettingError, match=message):
            Function(**settings, function=wrong).measure(subject, tmp_path)
    by_module = Function(**settings, function="measuring:is_short")
    assert by_module.measure(subject, tmp_path).correct == (True,) * 5 and by_module.metric == "is_short"
    before = lengths.fingerprint()
    code.write_text(code.read_text() + "# changed\n")
    assert lengths.fingerprint() != before


def test_worked_examples_are_never_scored_and_every_arm_scores_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}=", "completion": "ok"} for number in range(20)] + [
        {"prompt": "3=", "completion": "ok"}
    ]
    suite = ExactMatch(source=source(write_rows(tmp_path / "rows.jsonl", rows)), reserve=4)
    shots = suite.shots(3, tmp_path)
    assert len(shots) == 3 and len(suite.shots(99, tmp_path)) == 4
    model = chain_model(OK)
    alone = suite.measure(Subject(model), tmp_path)
    taught = suite.measure(Subject(model, shots=shots), tmp_path)
    scored = [row.content["prompt"] for row in suite.scored_rows(tmp_path, 0)]
    assert not {shot.content["prompt"] for shot in suite.shots(99, tmp_path)} & set(scored)
    # Every content is scored or reserved, doubles included.
    reserved = {shot.content["prompt"] for shot in suite.shots(99, tmp_path)}
    assert len(scored) == sum(row["prompt"] not in reserved for row in rows)
    assert [sample.prompt for sample in alone.samples] == [sample.prompt for sample in taught.samples]
    assert len(alone.scores) == len(taught.scores) == len(scored)


def test_worked_examples_of_text_stand_before_the_prompt(tmp_path: Path) -> None:
    def question(prompt: Any, completion: Any) -> Any:
        return to_question(Row("completion", {"prompt": prompt, "completion": completion}, {}, None))  # type: ignore[arg-type]

    asked = question("c=", "C").after([question("a=", "A"), question("b=", "B")])
    assert asked.prompt == "a=A\n\nb=B\n\nc=" and asked.answer == "C"

    def chat(user: str, answer: str) -> Any:
        system = {"role": "system", "content": "be brief"}
        return question([system, {"role": "user", "content": user}], [{"role": "assistant", "content": answer}])

    turns = chat("c", "C").after([chat("a", "A")]).prompt
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("system", "be brief"),
        ("user", "a"),
        ("assistant", "A"),
        ("user", "c"),
    ]


def test_an_answer_ends_at_the_blank_line_only_behind_worked_examples(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}=", "completion": "ok"} for number in range(8)]
    suite = ExactMatch(source=source(write_rows(tmp_path / "rows.jsonl", rows)), reserve=2, max_new_tokens=6)
    model = chain_model(("=", "o", "k", "\n", "\n"))
    shots = suite.shots(1, tmp_path)
    assert suite.measure(Subject(model, shots=shots), tmp_path).samples[0].output == "ok"
    assert suite.measure(Subject(model), tmp_path).samples[0].output == "ok\n\n\n\n"


def test_worked_examples_that_do_not_fit_are_left_off(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}" * 30 + "=", "completion": "ok"} for number in range(9)]
    suite = ExactMatch(source=source(write_rows(tmp_path / "rows.jsonl", rows)), reserve=2)
    model, shots = chain_model(OK), suite.shots(2, tmp_path)
    row = suite.scored_rows(tmp_path, 0)[0]
    # 128 positions: one worked example of 35 tokens, the question of 31 and 40 for the answer, not two.
    asked = suite.ask(model, row, shots, room=40)
    assert asked is not None and asked[0].text.count("=") == 2
    asked = suite.ask(model, row, shots, room=90)
    assert asked is not None and asked[0].text == row.content["prompt"]


def test_the_subset_is_fixed_seeded_and_in_order(tmp_path: Path) -> None:
    rows = [{"text": f"number {number}"} for number in range(50)]
    suite = Perplexity(source=source(write_rows(tmp_path / "rows.jsonl", rows)), examples=10)
    chosen = [row.content["text"] for row in suite.rows(tmp_path, 1)]
    assert chosen == [row.content["text"] for row in suite.rows(tmp_path, 1)]
    assert chosen != [row.content["text"] for row in suite.rows(tmp_path, 2)]
    assert len(set(chosen)) == 10 and chosen == sorted(chosen, key=lambda text: int(text.split()[1]))
    assert len(suite.model_copy(update={"examples": None}).rows(tmp_path, 1)) == 50


def test_two_halves_share_no_row_and_make_the_whole(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}"} for number in range(31)]
    suite = Perplexity(source=source(write_rows(tmp_path / "rows.jsonl", rows)), examples=None)

    def texts(half: str | None, seed: int = 3) -> list[str]:
        return [str(row.content["text"]) for row in suite.model_copy(update={"half": half}).rows(tmp_path, seed)]

    first, second = texts("first"), texts("second")
    assert (len(first), len(second)) == (15, 16) and not set(first) & set(second)
    assert set(first) | set(second) == set(texts(None))
    assert first == texts("first") and first != texts("first", seed=4)
    # A row that is left out leaves its half, and moves no other one.
    one = suite.model_copy(update={"half": "first"})
    left = one.rows(tmp_path, 3, excluded=[one.contents(tmp_path, 3)[0]])
    assert [row.content["text"] for row in left] == first[1:]


def test_shorthands_of_a_recipe() -> None:
    parse = TypeAdapter(Suite).validate_python
    assert parse("drift").method_name == "drift"
    reverse = parse("lab/reverse")
    assert isinstance(reverse, ExactMatch) and (reverse.label, reverse.split) == ("lab/reverse", "test")
    assert parse("lab/reverse/text").method_name == "perplexity"
    assert isinstance(parse("my/file.jsonl"), Perplexity)
    named = parse({"exact_match": {"source": "lab/copy", "name": "copying", "examples": 7}})
    assert named.label == "copying" and parse(named.written()) == named
    with pytest.raises(ValidationError, match="did you mean 'perplexity'"):
        parse({"perplexty": {"source": "lab/copy"}})


def test_defaults_fill_only_what_nobody_wrote() -> None:
    written, unwritten = Perplexity(source=source("a.jsonl"), examples=200), Perplexity(source=source("a.jsonl"))
    assert with_defaults(written, examples=5).examples == 200  # type: ignore[attr-defined]
    changed = with_defaults(unwritten, examples=None, on_bad_rows="skip", answer="x")
    assert (changed.examples, changed.on_bad_rows) == (None, "skip")  # type: ignore[attr-defined]


def test_a_score_survives_json(tmp_path: Path) -> None:

    for score in (exact(tmp_path), Score("m", False, (0.1, math.pi), (1.0, 2.0), None, "exp", "perplexity")):
        assert from_plain(json.loads(json.dumps(plain(score)))) == score
