"""The harness' log becomes a score, and it and our suites give the same answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from families import tiny
from measuring import chain_model, write_rows
from temper.core.errors import MissingExtra, SettingError
from temper.measure.base import Subject
from temper.measure.exact_match import ExactMatch
from temper.measure.harness import Harness
from temper.measure.multiple_choice import MultipleChoice


def entry(doc: int, acc: float, filter: str = "none", **metrics: Any) -> dict[str, Any]:
    arguments = {"gen_args_0": {"arg_0": f"question {doc}", "arg_1": {"until": []}}}
    return {
        "doc_id": doc,
        "target": "7",
        "arguments": arguments,
        "filtered_resps": ["7"],
        "filter": filter,
        "metrics": ["acc", *metrics],
        "acc": acc,
        **metrics,
    }


def test_a_log_is_read_in_the_order_of_examples() -> None:
    log = [entry(1, 0.0), entry(0, 1.0), entry(0, 0.0, "strict"), entry(1, 0.0, "strict")]
    score = Harness(task="t").read(log, {"acc": True})
    assert (score.metric, score.scores, score.correct, score.unit) == ("acc", (1.0, 0.0), (True, False), "share")
    assert (score.samples[0].prompt, score.samples[0].expected, score.samples[0].output) == ("question 0", "7", "7")
    assert Harness(task="t", filter="strict").read(log, {}).scores == (0.0, 0.0)


def test_metrics_are_chosen_by_name_and_must_be_numbers() -> None:
    log = [entry(0, 1.0, bleu=["a", "b"], loss=2.5), entry(1, 0.0, bleu=["a", "b"], loss=1.5)]
    loss = Harness(task="t", metric="loss").read(log, {"loss": False})
    assert (loss.scores, loss.higher_is_better, loss.correct, loss.unit) == ((2.5, 1.5), False, None, "number")
    with pytest.raises(SettingError, match="not a number for each example"):
        Harness(task="t", metric="bleu").read(log, {})
    with pytest.raises(SettingError, match="did you mean 'acc'"):
        Harness(task="t", metric="accc").read(log, {})


def test_own_task_files_count_for_the_suites_name(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("task: t")
    suite = Harness(task="t", include_path=tmp_path)
    before = suite.fingerprint()
    (tmp_path / "t.yaml").write_text("task: t\n")
    assert suite.fingerprint() != before


def test_without_the_harness_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'temper-llm\[harness\]'"):
        Harness(task="t", include_path=tmp_path).measure(Subject(tiny()), tmp_path)


def test_ours_and_the_harness_answers_are_the_same(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {n}: ", "completion": c[n % 3], "choices": c}
        for n, c in enumerate([["ok", "not so", "a"], ["1", "22", "333"], ["he", "the hen", "in"], ["x", "y", "z"]] * 4)
    ]
    questions = [{"prompt": f"{n}=", "completion": "ok" if n % 3 else "no"} for n in range(9)]
    for name, written in (("choice", rows), ("writing", questions)):
        write_rows(tmp_path / f"{name}.jsonl", written)
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "target_delimiter": "",
        }
        if name == "choice":
            task |= {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
            task |= {"doc_to_target": "{{choices.index(completion)}}"}
            task |= {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
        else:
            task |= {"output_type": "generate_until", "doc_to_target": "{{completion}}"}
            task |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}}
            task |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    settings: dict[str, Any] = {"include_path": tmp_path, "examples": None}
    choice, writing = Harness(task="local_choice", **settings), Harness(task="local_writing", **settings)
    model, answering = tiny("qwen3", seed=3), chain_model(("=", "o", "k", "<eos>"))
    path = str(tmp_path / "choice.jsonl")
    ours = MultipleChoice(source=path, reserve=0, examples=None).measure(Subject(model), tmp_path)  # type: ignore[arg-type]
    assert choice.measure(Subject(model), tmp_path).correct == ours.correct
    assert ours.correct is not None and 0 < sum(ours.correct) < len(rows)
    path = str(tmp_path / "writing.jsonl")
    ours = ExactMatch(source=path, reserve=0).measure(Subject(answering), tmp_path)  # type: ignore[arg-type]
    assert writing.measure(Subject(answering), tmp_path).correct == ours.correct
    with pytest.raises(SettingError, match="did you mean 'local_choice'"):
        Harness(task="local_choise", **settings).measure(Subject(model), tmp_path)
