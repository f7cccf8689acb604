"""Run a recipe: what is not there yet is made, what is there stays.

Decisions:
- A stage is finished when its folder says `done`, its key is the one that the recipe gives now, and the models and
  data that it read are, bit for bit, the ones that stand now. So a second run does nothing, a changed stage redoes
  itself and what follows from it, and a forced stage redoes what follows only if it came out otherwise.
- A folder is found by its key, whatever the name in front: a renamed stage keeps its folder. Folders of settings
  that are no longer in the recipe are left alone; a setting that is changed back finds its stage again.
- A kill may fall anywhere. A stage's folder then says `running`, the stage is called again with what it left, and
  what was half-written lies beside the place where it belongs.
- Under `torchrun` the main process decides, measures and reports. The others follow: they wait until it calls all to
  a stage, and do that with it.
- Everything that fails while a stage runs or is measured is told as that stage's failure, with its cause chained
  and how to go on. `run.json` and `report.html` are written then, too.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from temper.core.errors import GateError, StageError, TemperError
from temper.core.files import remove_abandoned, write_json
from temper.delta.base import Provenance, read_delta, write_provenance
from temper.engine.distributed import World
from temper.measure.gate import check_gate
from temper.pipeline.keys import Planned, code_versions, plan
from temper.pipeline.lock import locked
from temper.pipeline.machine import git_state, machine, versions
from temper.pipeline.measuring import Measuring
from temper.pipeline.recipe import Recipe
from temper.pipeline.references import BASE, replace_sources
from temper.pipeline.result import Run
from temper.pipeline.shelf import CACHE, RunContext, Shelf, fingerprint_results, read_json
from temper.report import write_report


def run(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    force: Sequence[str] = (),
    until: str | None = None,
    say: Callable[[str], None] | None = None,
    command: Sequence[str] | None = None,
    world: World | None = None,
) -> Run:
    """Run a recipe and return what it made; what an earlier run finished is not done again.

    Args:
        recipe: a recipe, or its YAML file.
        overrides: `dotted.key=value`, for a recipe given as a file.
        runs: the folder under which the run gets a folder of its own, by the recipe's name.
        force: names of stages that are done again though they are finished.
        until: name of the last stage to run.
        say: takes a line for the user; by default it is printed to standard error.
        command: the command that repeats the run, for the report and for errors.
        world: the processes of the run; None to join those of `torchrun`.

    Raises:
        SettingError, DataError, ModelError: a recipe that cannot be run; nothing has been done.
        StageError: a stage failed; the ones before it stay.
        GateError: a suite fell by more than a stage's gate allows; the stage stays.

    Example:
        ```python
        result = temper.run("recipe.yaml", ["stages.adapt.train.lr=3e-4"])
        print(result.table())
        model = result.model("adapt")
        ```
    """
    with World.join() if world is None else nullcontext(world) as together:
        source = None if isinstance(recipe, Recipe) else str(recipe)
        if command is None:
            command = ["temper", "run", source, *overrides] if source is not None else ["temper.run(recipe)"]
        if not isinstance(recipe, Recipe):
            recipe = Recipe.load(recipe, overrides)
        for name in [*force, *([until] if until is not None else [])]:
            recipe.step(name)
        folder = Path(runs) / recipe.name
        if not together.is_main:
            _follow(together)
            return Run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            Running(recipe, folder, source, command, say or _print, together).go(force, until)
        together.broadcast(None)
        return Run(folder)


def _follow(world: World) -> None:
    """Do the stages that the main process calls all to, until it calls to none."""
    while (order := world.broadcast(None)) is not None:
        stage, before, context = order
        stage.run(replace(context, world=world), before)


def _say_nothing(text: str) -> None:
    """What the processes that follow do with a line for the user."""


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def now() -> str:
    """Return the time as ISO text, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Running:
    """One run of a recipe, under its folder's lock."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        source: str | None,
        command: Sequence[str],
        say: Callable[[str], None],
        world: World,
    ) -> None:
        self.recipe, self.folder, self.say, self.world = recipe, folder, say, world
        self.command = command
        cache = folder.parent / CACHE
        cache.mkdir(exist_ok=True)
        self.shelf = Shelf(recipe.base, cache, recipe.seed)
        self.outputs: dict[str, str] = {}
        """content of what each finished stage left; the base's key"""
        _remove_leftovers(folder)
        remove_abandoned(cache)
        say(f"{BASE}: {recipe.base.label}")
        base_key = recipe.base.key(cache, recipe.seed)
        self.outputs[BASE] = base_key
        self.planned = plan(recipe, base_key)
        self.base_folder = folder / f"{BASE}-{base_key}"
        for planned in self.planned:
            self.shelf.folders[planned.name] = self._find(planned)
        self.measuring = Measuring(recipe, self.shelf, self.base_folder)
        self.record: dict[str, Any] = {
            "name": recipe.name,
            "recipe": recipe.model_dump(mode="json"),
            "source": source,
            "command": shlex.join(command),
            "started": now(),
            "versions": versions(),
            "machine": machine(),
            "git": git_state(),
            "error": None,
            "warnings": [],
        }

    def go(self, force: Sequence[str], until: str | None) -> None:
        """Do what is not done, in order."""
        self._write_run()
        try:
            with _Guard(self, BASE):
                self._base()
            for planned in self.planned:
                with _Guard(self, planned.name):
                    self._stage(planned, planned.name in force)
                self._write_run()
                if planned.name == until:
                    break
        except (StageError, GateError) as error:
            self.record["error"] = str(error)
            raise
        finally:
            self._write_run()
            write_report(self.folder)

    def _base(self) -> None:
        record = self.base_folder / "stage.json"
        if not record.is_file():
            self.base_folder.mkdir(exist_ok=True)
            stage = {"name": BASE, "kind": BASE, "key": self.outputs[BASE], "status": "done"}
            base = self.recipe.base.model_dump(mode="json")
            settings = base if isinstance(base, dict) else {"path": base}
            write_json(record, {**stage, "settings": settings, "models": [], "sources": {}, "versions": versions()})
        self.measuring.base(self.outputs[BASE], self.say)

    def _stage(self, planned: Planned, is_forced: bool) -> None:
        folder = self.shelf.folders[planned.name]
        record = read_json(folder / "stage.json")
        inputs = [self.outputs[name] for name in (*planned.models, *planned.data)]
        if is_forced or record.get("inputs", inputs) != inputs:
            _remove(folder)
            record = {}
        if record.get("status") == "done" and not planned.step.stage.stands(folder, record.get("details", {})):
            self.say(f"{planned.name}: what it left is no longer there, so it is done again")
            record = {}
        if record.get("status") == "done":
            names = {"name": planned.name, "models": list(planned.models)}
            if any(record[key] != value for key, value in names.items()):
                write_json(folder / "stage.json", {**record, **names})
            self.say(f"{planned.name}: done before ({folder})")
        else:
            record = self._do(planned, folder, inputs)
        self.outputs[planned.name] = record["output"]
        if planned.makes_model:
            self.measuring.stage(planned, folder, self.outputs, self.say)
            gate = planned.step.gate
            if gate is not None:
                reports = self.measuring.reports(planned.name)
                check_gate(gate.max_fall, reports, gate.against, suites=gate.suites, key=f"stages.{planned.name}.gate")
        else:
            self.measuring.read(planned.name, folder)

    def _do(self, planned: Planned, folder: Path, inputs: list[str]) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        stage = replace_sources(planned.step.stage, self.shelf.bind)
        record: dict[str, Any] = {
            "name": planned.name,
            "kind": planned.kind,
            "key": planned.key,
            "status": "running",
            "settings": stage.written()[planned.kind],
            "models": list(planned.models),
            "data": list(planned.data),
            "inputs": inputs,
            "sources": dict(planned.sources),
            "seed": self.recipe.seed,
            "versions": versions(),
            "code": code_versions(planned.step),
            "git": git_state(),
            "started": now(),
        }
        self.say(f"{planned.name}: {planned.kind}")
        write_json(folder / "stage.json", record)
        context = RunContext(
            planned.name, folder, self.shelf.cache, self.shelf, self.recipe.seed, self.recipe.on_bad_rows, _say_nothing
        )
        world = self.world if stage.runs_on == "all" else World()
        if world.size > 1:
            world.broadcast((stage, planned.before, context))
        outcome = stage.run(replace(context, tell=self.say, world=world), planned.before)
        outcome.warnings += self.measuring.leaks(planned)
        self._sign(planned, folder)
        record |= {
            "status": "done",
            "precision": outcome.details.get("dtype"),
            "finished": now(),
            "output": fingerprint_results(folder, inputs),
            **asdict(outcome),
        }
        write_json(folder / "stage.json", record)
        for warning in outcome.warnings:
            self.say(f"{planned.name}: warning: {warning}")
        return record

    def _sign(self, planned: Planned, folder: Path) -> None:
        """Write into a delta what only the run knows of its making."""
        if (folder / "delta").is_dir():
            start = planned.models[0]
            own = read_delta(folder / "delta").provenance
            write_provenance(
                folder / "delta",
                Provenance(
                    base_fingerprint=own.base_fingerprint,
                    base_name=self.recipe.base.label if start == BASE else own.base_name,
                    method=own.method or planned.step.stage.written(),
                    data=dict(planned.sources),
                    seed=self.recipe.seed,
                    version=own.version,
                ),
            )

    def _find(self, planned: Planned) -> Path:
        """Return the folder of a stage: one with its key, or the one that it will have."""
        named = self.folder / f"{planned.name}-{planned.key}"
        others = sorted(path for path in self.folder.glob(f"*-{planned.key}") if path.is_dir())
        return named if named.is_dir() or not others else others[0]

    def _write_run(self) -> None:
        stages = [
            {
                "name": planned.name,
                "kind": planned.kind,
                "key": planned.key,
                "folder": self.shelf.folders[planned.name].name,
                "previous": planned.previous,
                "models": list(planned.models),
                "data": list(planned.data),
                "sources": [*planned.sources, *planned.data],
            }
            for planned in self.planned
        ]
        base = {"name": BASE, "kind": BASE, "key": self.outputs[BASE], "folder": self.base_folder.name}
        matrix = self.measuring.matrix([planned for planned in self.planned if planned.name in self.outputs])
        write_json(self.folder / "run.json", {**self.record, "stages": [base, *stages], "matrix": matrix})


class _Guard:
    """Turns whatever fails inside into the failure of a stage, and notes it in the stage's folder."""

    def __init__(self, running: Running, name: str) -> None:
        self.running, self.name = running, name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, GateError) or not isinstance(error, Exception):
            return
        cause = str(error) if isinstance(error, TemperError) else f"{type(error).__name__}: {error}"
        folder = self.running.shelf.folders.get(self.name, self.running.base_folder)
        record = read_json(folder / "stage.json")
        is_measured = record.get("status") == "done"
        if not is_measured and record:
            write_json(folder / "stage.json", {**record, "status": "failed", "error": cause})
        what = f"stage {self.name!r}" if self.name != BASE else "the base"
        finished = [planned.name for planned in self.running.planned if planned.name in self.running.outputs]
        raise StageError(
            f"{what} {'could not be measured' if is_measured else 'failed'}: {cause}\n"
            f"finished and kept: {', '.join(finished) or 'nothing yet'}\n"
            f"to go on, mend the cause and run again: {shlex.join(self.running.command)}"
        ) from error


def _remove(folder: Path) -> None:
    """Take a folder away; a kill leaves it whole or out of the way."""
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)


def _remove_leftovers(folder: Path) -> None:
    """Take away what a killed run left half-written or half-removed."""
    for pattern in ("*.partial", "*.old"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
