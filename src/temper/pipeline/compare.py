"""Compare settings of a recipe under one budget: gain against loss, memory and time.

Decisions:
- Every setting has the same budget and the same search: the same number of learning rates, spaced alike around its own
  rate, with the recipe's seed, measured on one half of each suite's rows. The rate with the greatest gain wins, of
  equal ones that with the least loss. The runs that count have other seeds and are measured on the other half.
- Gain is the mean change of the suites to gain against the base, loss the mean fall of the suites to keep, both in the
  unit of their first suite; a suite in another unit is listed and left out of the mean.
- Memory is what a process holds at most above what it held with the model loaded; time is that of attaching and of
  every stage, without measuring. An outcome says beside how many runs and with how many threads it was made: where
  these differ, times are not said to compare.
- Every run is an ordinary run, whose command stands in its report, and lies under the comparison's folder. Its outcome
  is kept by all that it follows from: a second comparison does nothing, one that was killed goes on, and one with a
  further setting runs only that. A refusal and a training that fails are outcomes, told with their reason.
"""

from __future__ import annotations

import copy
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper.core.code import code_version
from temper.core.errors import SettingError
from temper.core.files import write_json
from temper.core.hashing import hash_json
from temper.engine.settings import FitSettings, learning_rate
from temper.measure.runs import mean_interval, unbeaten
from temper.measure.statistics import Interval
from temper.pipeline.comparing import Compare
from temper.pipeline.document import Document, override, path_of, read_document
from temper.pipeline.explain import validate
from temper.pipeline.keys import plan
from temper.pipeline.lock import locked
from temper.pipeline.machine import git_state, machine, num_cores, versions
from temper.pipeline.recipe import Recipe
from temper.pipeline.run import now
from temper.pipeline.shelf import CACHE, read_json
from temper.pipeline.vary import Setting, find_settings, paths_of
from temper.pipeline.worker import LOG, Job, run_jobs
from temper.report import comparison as report
from temper.report import format as fmt

FILE = "compare.json"
OUTCOMES = "outcomes"
COSTS = ("seconds", "memory_bytes", "peak_memory_bytes", "trained", "delta_bytes", "tokens", "steps", "flops")
FRONTS = {"loss": "loss", "memory": "memory_bytes", "time": "seconds"}
"""what gain is weighed against, by the number that is to be small"""


def compare(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    say: Callable[[str], None] | None = None,
    command: Sequence[str] | None = None,
    **settings: Any,
) -> Path:
    """Compare settings of a recipe, and return the folder that holds `compare.json`, `.md` and `.html`.

    Args:
        recipe: the recipe's YAML file.
        overrides: `dotted.key=value`, for all settings alike.
        runs: the folder under which the comparison gets `<recipe>-compare`.
        say: takes a line for the user; by default it is printed to standard error.
        command: the command that repeats the comparison.
        settings: instead of those under the recipe's key `compare`: `vary`, `seeds`, `budget`, `lr_search`, `jobs`.

    Raises:
        SettingError, DataError, ModelError: a recipe that cannot be run, a key or a value that fits nowhere; nothing
            has been run.

    Every run is a process of its own, which imports the script that asks for it: a script calls this under
    `if __name__ == "__main__":`.

    Example:
        ```python
        folder = temper.compare("recipe.yaml", vary={"train.tune": ["lora", "full"]}, seeds=5, budget={"steps": 200})
        ```
    """
    document = read_document(Path(recipe))
    document.value.setdefault("name", Path(recipe).stem)
    for text in overrides:
        override(document, text)
    document.overridden.clear()
    Recipe.parse(copy.deepcopy(document))
    written = document.value.pop("compare", None) or {}
    chosen = {**written, **{name: value for name, value in settings.items() if value is not None}}
    if not chosen.get("vary"):
        fix = "give --vary KEY=a,b, or write it under the recipe's key `compare`"
        raise SettingError("vary", "", "is empty, so there is nothing to compare", fix)
    own_search = written.get("lr_search")
    if isinstance(own_search, dict) and isinstance(chosen["lr_search"], int):
        chosen["lr_search"] = {**own_search, "num": chosen["lr_search"]}
    plan_of = validate(Compare, chosen)
    parsed = Recipe.parse(copy.deepcopy(document))
    if command is None:
        command = ["temper", "compare", str(recipe), *overrides]
    folder = Path(runs) / f"{parsed.name}-compare"
    (folder / OUTCOMES).mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _Comparing(Path(recipe), document, parsed, plan_of, folder, tuple(command), say or _print).go(overrides)
    return folder


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class _Trial:
    """One run of a setting, and what came of it."""

    job: Job
    seed: int
    lr: list[float]
    """of each training stage; empty where the recipe's own are taken"""
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> dict[str, Any] | None:
        """What it reached, None where it failed or has not run."""
        result: dict[str, Any] | None = self.outcome.get("result")
        return result

    def read(self) -> bool:
        """Take the outcome that was left, where it is of this very run; tell whether the run need not be repeated."""
        found = read_json(self.job.outcome)
        self.outcome = found if found.get("key") == self.job.key else {}
        return self.result is not None or self.outcome.get("failure", {}).get("is_final", False)


@dataclass
class _Row:
    """A setting with its trials."""

    setting: Setting
    search: list[_Trial] = field(default_factory=list)
    trials: list[_Trial] = field(default_factory=list)
    problem: str = ""
    """why it cannot be compared"""


@dataclass
class _Comparing:
    recipe_file: Path
    document: Document
    recipe: Recipe
    plan: Compare
    folder: Path
    command: tuple[str, ...]
    say: Callable[[str], None]

    def go(self, overrides: Sequence[str]) -> None:
        """Do what is not done, and write the results."""
        started, self.given = now(), tuple(overrides)
        if self.recipe.measure.half is not None:
            reason = "is what a comparison sets: it chooses by one half and reports the other"
            raise SettingError("measure.half", self.recipe.measure.half, reason, "take it out")
        self.lengths = self._lengths()
        for text in self.lengths:
            override(self.document, text)
        self.document.overridden.clear()
        if not self.recipe.measure.gain:
            raise SettingError("measure.gain", [], "names nothing to gain, so nothing is compared", "name a suite")
        cache = self.folder / CACHE
        cache.mkdir(exist_ok=True)
        self.base_keys = {seed: self.recipe.base.key(cache, seed) for seed in self._seeds()}
        self.threads = max(1, num_cores() // self.plan.jobs)
        settings = find_settings(self.document, self.plan.vary)
        rows = [_Row(setting, problem=setting.problem) for setting in settings]
        searched = self._factors()
        counts = (len(rows), "setting"), (len(searched), "learning rate"), (self.plan.seeds, "seed")
        settings_said, rates, seeds = (fmt.plural(count, what) for count, what in counts)
        self.say(f"{settings_said}, {rates} each, then {seeds} each")
        self.started, self.num_run = time.monotonic(), 0
        for row in rows:
            if not row.problem and len(searched) > 1:
                row.search = [self._trial(row, self.recipe.seed, factor, "first") for factor in searched]
        compared = sum(not row.problem for row in rows)
        self._run([trial for row in rows for trial in row.search], further=compared * self.plan.seeds)
        for row in rows:
            if not row.problem:
                row.trials = list(self._reported(row, searched))
        self._run([trial for row in rows for trial in row.trials])
        for row in rows:
            failures = [trial.outcome.get("failure", {}) for trial in row.trials]
            if failures and not any(trial.result for trial in row.trials):
                row.problem = failures[0].get("reason", "every run was ended from outside")
        written = self._written(rows, started)
        write_json(self.folder / FILE, written)
        report.write_comparison(self.folder, written)

    def _seeds(self) -> list[int]:
        return [self.recipe.seed + number for number in range(self.plan.seeds + 1)]

    def _factors(self) -> list[float]:
        """Return what learning rates are multiplied with; a single 1 where they are what varies, or nothing trains."""
        factors = self.plan.lr_search.factors() if _trained(self.recipe) else [1.0]
        key = self._varied(f"{path}.lr" for path, _ in _trained(self.recipe))
        if key is None:
            return factors
        if "lr_search" in self.plan.model_fields_set and len(factors) > 1:
            reason = f"searches what vary lists already: {key}"
            raise SettingError("lr_search", len(factors), reason, "search none (1), or vary something else")
        return [1.0]

    def _varied(self, places: Iterable[str]) -> str | None:
        """Return a key of `vary` that stands for one of some places in the recipe, None where none does."""
        asked = {path_of(self.document, place) for place in places}
        for key in self.plan.vary:
            if any(path_of(self.document, path) in asked for path in paths_of(self.document.value, key)):
                return key
        return None

    def _reported(self, row: _Row, searched: Sequence[float]) -> Iterator[_Trial]:
        """Yield the runs that count, with the best rate of the search."""
        factor, half = searched[0], None
        if row.search:
            half = "second"
            reached = [(trial, number) for number, trial in enumerate(row.search) if trial.result is not None]
            if not reached:
                row.problem = row.search[0].outcome.get("failure", {}).get("reason", "every run was ended from outside")
                return
            best = max(reached, key=lambda pair: _merit(pair[0].result or {}))
            factor = searched[best[1]]
        for seed in self._seeds()[1:]:
            yield self._trial(row, seed, factor, half)

    def _trial(self, row: _Row, seed: int, factor: float, half: str | None) -> _Trial:
        """Return a run of a setting, with its own learning rates times a factor."""
        overrides = list(row.setting.overrides)
        rates = []
        if factor != 1.0 or half is not None:
            for path, stage in _trained(self._recipe(overrides)):
                rates.append(float(f"{factor * learning_rate(stage):.4g}"))
                overrides.append(f"{path}.lr={rates[-1]!r}")
        at = f".lr{rates[0]:g}" if rates else ""
        name = f"{row.setting.slug}{at}.{'search' if half == 'first' else 'seed'}{seed}"
        overrides += [f"seed={seed}", f"name={json.dumps(name)}"]
        if half is not None:
            overrides.append(f"measure.half={half}")
        recipe = self._recipe(overrides)
        changes = (*self.given, *self.lengths, *overrides)
        command = ("temper", "run", str(self.recipe_file), *changes, "--runs", str(self.folder))
        outcome = self.folder / OUTCOMES / f"{name}.json"
        job = Job(recipe, self._key(recipe, seed), self.folder, outcome, command, self.plan.jobs, self.threads)
        return _Trial(job, seed, rates)

    def _recipe(self, overrides: Sequence[str]) -> Recipe:
        return Recipe.parse(copy.deepcopy(self.document), overrides)

    def _lengths(self) -> list[str]:
        """Return the overrides that give every training stage the budget."""
        if self.plan.budget is None:
            return []
        own, trained = self.plan.budget.given, _trained(self.recipe)
        if not trained:
            raise SettingError("budget", own, "is for training stages, and the recipe has none", "take it out")
        key = self._varied(f"{path}.{name}" for path, _ in trained for name in type(self.plan.budget).model_fields)
        if key is not None:
            fix = "take the budget out, or vary something else"
            raise SettingError("vary", key, f"is how long a stage trains, which the budget sets ({own})", fix)
        lengths: dict[str, float | None] = {**dict.fromkeys(type(self.plan.budget).model_fields), **own}
        return [f"{path}.{name}={json.dumps(value)}" for path, _ in trained for name, value in lengths.items()]

    def _key(self, recipe: Recipe, seed: int) -> str:
        """Name all that a run's outcome follows from."""
        measure = recipe.measure
        suites = [[suite.fingerprint(), suite.label] for suite in (*measure.gain, *measure.keep)]
        stages = [planned.key for planned in plan(recipe, self.base_keys[seed])]
        written = measure.model_dump(mode="json", include={"shots", "examples", "half", "seed"})
        gates = [step.gate.model_dump(mode="json") if step.gate else None for step in recipe.stages]
        code = code_version(Job.__module__, [])
        return hash_json([self.base_keys[seed], stages, suites, len(measure.gain), written, gates, code])

    def _run(self, trials: Sequence[_Trial], further: int = 0) -> None:
        """Run what has no outcome yet."""
        waiting = {trial.job.outcome: trial for trial in trials if not trial.read()}
        total = len(waiting) + further
        before = self.num_run

        def tell(job: Job, code: int | None) -> None:
            trial = waiting[job.outcome]
            trial.read()
            self.num_run += 1
            left = (time.monotonic() - self.started) / self.num_run * (total + before - self.num_run)
            said = self._said(trial, code)
            self.say(f"{self.num_run - before}/{len(waiting)} {job.recipe.name}: {said}; {_minutes(left)}")

        run_jobs([trial.job for trial in waiting.values()], self.plan.jobs, tell)

    def _said(self, trial: _Trial, code: int | None) -> str:
        if trial.result is None:
            failure = trial.outcome.get("failure")
            log = self.folder / trial.job.recipe.name / LOG
            return f"failed: {failure['reason']}" if failure else f"ended with code {code}, see {log}"
        gain, loss = (_change(trial.result, role) for role in ("gain", "keep"))
        return f"gain {gain:+.3f}, keep {loss:+.3f}" if loss is not None else f"gain {gain:+.3f}"

    def _written(self, rows: Sequence[_Row], started: str) -> dict[str, Any]:
        """Return everything as plain values: what `compare.json` holds."""
        settings = [_written_row(row) for row in rows]
        present = [own for own in settings if not own["problem"]]
        results = [trial.result for row in rows for trial in row.trials if trial.result is not None]
        ways = sorted({tuple(result["way"].items()) for result in results})
        for name, cost in FRONTS.items():
            if name == "time" and len(ways) > 1:
                continue
            known = [own for own in present if own["mean"]["gain"] is not None and own["mean"].get(cost) is not None]
            marks = unbeaten([(own["mean"][cost]["value"], -own["mean"]["gain"]["value"]) for own in known])
            for own, mark in zip(known, marks, strict=True):
                own["front"] += [name] if mark else []
        return {
            "name": self.recipe.name,
            "command": shlex.join(self.command),
            "started": started,
            "finished": now(),
            "base": self.recipe.base.model_dump(mode="json"),
            "compare": self.plan.model_dump(mode="json"),
            "roles": {role: _role(results[0], role) for role in ("gain", "keep")} if results else {},
            "ways": [dict(way) for way in ways],
            "machine": machine(),
            "versions": versions(),
            "git": git_state(),
            "settings": settings,
        }


def _trained(recipe: Recipe) -> list[tuple[str, FitSettings]]:
    """Return what says how a stage trains, with its place in the recipe: the stage itself, or a setting of it."""
    found: list[tuple[str, FitSettings]] = []
    for number, step in enumerate(recipe.stages):
        stage, place = step.stage, f"stages[{number}].{step.stage.method_name}"
        candidates: dict[str, object] = {place: stage}
        for name, own in type(stage).model_fields.items():
            candidates[f"{place}.{own.alias or name}"] = getattr(stage, name)
        found += [(path, settings) for path, settings in candidates.items() if isinstance(settings, FitSettings)]
    return found


def _role(result: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Return the unit of a role's first suite, the suites in that unit, and those in another."""
    suites = {label: suite for label, suite in result["suites"].items() if suite["role"] == role}
    unit = next((suite["unit"] for suite in suites.values()), None)
    counted = [label for label, suite in suites.items() if suite["unit"] == unit]
    first = suites[counted[0]]["metric"] if counted else None
    return {
        "unit": unit,
        "metric": first,
        "suites": counted,
        "others": [name for name in suites if name not in counted],
    }


def _changes(result: Mapping[str, Any], role: str) -> list[float]:
    """Return how much better than the base each counted suite of a role became; below 0: worse."""
    counted = [result["suites"][label] for label in _role(result, role)["suites"]]
    return [(suite["value"] - suite["base"]) * (1 if suite["higher_is_better"] else -1) for suite in counted]


def _change(result: Mapping[str, Any], role: str) -> float | None:
    changes = _changes(result, role)
    return sum(changes) / len(changes) if changes else None


def _merit(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return what the search chooses by: gain, and of equal gains the least loss."""
    return _change(result, "gain") or 0.0, _change(result, "keep") or 0.0


def _written_row(row: _Row) -> dict[str, Any]:
    runs = [_written_trial(trial) for trial in row.trials]
    reached = [run for run in runs if "gain" in run]
    names = ("gain", "loss", "worst", *COSTS)
    means = {name: _mean([run[name] for run in reached if run.get(name) is not None]) for name in names}
    rates = [trial.lr for trial in row.search]
    chosen = row.trials[0].lr if row.trials else []
    return {
        "label": row.setting.label,
        "values": dict(row.setting.values),
        "overrides": list(row.setting.overrides),
        "problem": row.problem,
        "lr": chosen,
        "is_at_edge": len(rates) > 2 and chosen in (rates[0], rates[-1]),
        "search": [_written_trial(trial) for trial in row.search],
        "runs": runs,
        "num_failed": len(runs) - len(reached),
        "mean": means,
        "front": [],
    }


def _written_trial(trial: _Trial) -> dict[str, Any]:
    run = {"name": trial.job.recipe.name, "seed": trial.seed, "lr": trial.lr}
    if trial.result is None:
        return {**run, "failure": trial.outcome.get("failure", {}).get("reason", "ended from outside")}
    kept = _changes(trial.result, "keep")
    changes = {"gain": _change(trial.result, "gain"), "loss": -sum(kept) / len(kept) if kept else None}
    return {**run, **changes, "worst": -min(kept) if kept else None, **trial.result}


def _mean(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    mean = mean_interval(values)
    if isinstance(mean, Interval):
        return {"value": mean.value, "low": mean.low, "high": mean.high}
    return {"value": mean, "low": None, "high": None}


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {max(0.0, seconds):.0f} s left"
