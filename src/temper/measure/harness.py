"""Tasks of lm-evaluation-harness, as a suite (extra `harness`).

Source: EleutherAI's Language Model Evaluation Harness (Lessons from the Trenches on Reproducible Evaluation of
Language Models, arXiv:2405.14782). It builds the prompts, runs our model as it is, and logs a number for each
example, which is what we read: intervals, flips and comparisons are ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from temper.core.errors import MissingExtra, SettingError, nearest
from temper.core.hashing import hash_files, hash_json
from temper.measure.base import NUM_SAMPLES, Sample, Score, Subject, Suite
from temper.models.generate import evaluation_mode


class Harness(Suite, name="harness"):
    """One task of lm-evaluation-harness, by one of its metrics.

    Metrics that the harness computes over a whole corpus at once (BLEU, F1 over a set) have no number for an example
    and cannot be used; those that are means over examples (`acc`, `acc_norm`, `exact_match`) can.
    """

    extra: ClassVar[str] = "harness"

    example: ClassVar[dict[str, Any]] = {"task": "rows", "include_path": "tasks", "examples": 4}

    task: str = Field(min_length=1, description="the task's name in the harness, one task and not a group")
    metric: str | None = Field(None, description="the task's metric; by default its first")
    filter: str | None = Field(None, description="the task's filter of answers; by default its first")
    examples: int | None = Field(200, ge=1, description="examples at most, the task's first; null for all of them")
    num_fewshot: int | None = Field(None, ge=0, description="worked examples in each prompt; by default the task's own")
    include_path: Path | None = Field(None, description="folder of your own task files (YAML)")
    apply_chat_template: bool = Field(False, description="ask through the model's chat template")
    batch_size: int = Field(16, ge=1, description="prompts of a batch")

    @property
    def default_label(self) -> str:
        return f"harness/{self.task}"

    def fingerprint(self) -> str:
        own = sorted(self.include_path.rglob("*.y*ml")) if self.include_path else []
        return hash_json([super().fingerprint(), hash_files(own)])

    def measure(self, subject: Subject, cache: Path, seed: int = 0) -> Score:
        if find_spec("lm_eval") is None:
            raise MissingExtra("lm_eval", self.extra, f"the suite {self.label}")
        evaluator, tasks = importlib.import_module("lm_eval"), importlib.import_module("lm_eval.tasks")
        models = importlib.import_module("lm_eval.models.huggingface")
        manager = tasks.TaskManager(include_path=str(self.include_path) if self.include_path else None)
        if self.task not in manager.all_subtasks:
            raise SettingError("task", self.task, "is no task of the harness", nearest(self.task, manager.all_subtasks))
        module = subject.model.module
        with evaluation_mode(module):
            results = evaluator.simple_evaluate(
                model=models.HFLM(pretrained=module, tokenizer=subject.model.tokenizer, batch_size=self.batch_size),
                tasks=[self.task],
                task_manager=manager,
                num_fewshot=self.num_fewshot,
                limit=self.examples,
                apply_chat_template=self.apply_chat_template,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        return self.read(results["samples"][self.task], results["higher_is_better"].get(self.task, {}))

    def read(self, logged: Sequence[Mapping[str, Any]], higher_is_better: Mapping[str, bool | None]) -> Score:
        """Turn the harness' log of one task into a score.

        Args:
            logged: an entry for each example and filter, with the names of its metrics and their numbers.
            higher_is_better: by metric.
        """
        filters = list(dict.fromkeys(str(entry["filter"]) for entry in logged))
        chosen = self._choose("filter", self.filter, filters)
        entries = sorted((entry for entry in logged if entry["filter"] == chosen), key=lambda entry: entry["doc_id"])
        metric = self._choose("metric", self.metric, list(entries[0]["metrics"]))
        written = [entry[metric] for entry in entries]
        for value in written:
            if not isinstance(value, bool | int | float):
                known = [name for name in entries[0]["metrics"] if isinstance(entries[0][name], bool | int | float)]
                raise SettingError("metric", metric, "is not a number for each example", nearest(metric, known))
        scores = tuple(float(value) for value in written)
        rises = higher_is_better.get(metric)
        is_judged = all(score in (0.0, 1.0) for score in scores)
        return Score(
            metric=metric,
            higher_is_better=rises is not False,
            scores=scores,
            correct=tuple(score == 1.0 for score in scores) if is_judged and rises is not False else None,
            unit="share" if all(0 <= score <= 1 for score in scores) else "number",
            samples=tuple(
                Sample(_prompt(entry), str(entry["target"]), _output(entry), score)
                for entry, score in zip(entries[:NUM_SAMPLES], scores, strict=False)
            ),
        )

    def _choose(self, key: str, wanted: str | None, known: Sequence[str]) -> str:
        if wanted is None:
            return known[0]
        if wanted not in known:
            raise SettingError(key, wanted, f"is no {key} of {self.task}", nearest(wanted, known))
        return wanted


def _prompt(entry: Mapping[str, Any]) -> str:
    """Return the context of an example's first request; the log holds requests as lists or as named mappings."""
    first = next(iter(entry["arguments"].values() if isinstance(entry["arguments"], Mapping) else entry["arguments"]))
    return str(next(iter(first.values())) if isinstance(first, Mapping) else first[0])


def _output(entry: Mapping[str, Any]) -> str:
    answers = entry["filtered_resps"]
    return answers[0] if answers and isinstance(answers[0], str) else ""
