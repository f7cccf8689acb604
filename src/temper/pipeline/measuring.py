"""Measuring every model of a run on the recipe's suites.

Decisions:
- `measure.json` is named by all that it follows from (suites, models, settings of measuring); where that name
  still fits, no model is loaded. Where it does not, scores that were measured before come from the cache, so a
  suite that is added measures only itself.
- Models are measured in the numbers in which they are stored, but in float32 where bf16 or fp16 weights meet a
  machine that cannot multiply them fast.
- A suite counts as learned by the first stage that trains on its data, for backward and forward transfer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from temper.core.files import write_json
from temper.core.hashing import hash_json
from temper.core.methods import Settings, methods_in
from temper.engine.precision import best_device, has_fast_bf16, hold_in
from temper.measure.base import Suite, with_defaults
from temper.measure.expert import Expert
from temper.measure.report import Measurement, Role, SuiteReport, measure_model
from temper.measure.transfer import FEW_SHOT, Matrix, transfer_matrix
from temper.models.model import Model
from temper.objectives.base import Objective
from temper.pipeline.explain import validate
from temper.pipeline.keys import Planned
from temper.pipeline.recipe import Recipe
from temper.pipeline.references import BASE, replace_sources
from temper.pipeline.shelf import Shelf, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable

Reports = Mapping[str, SuiteReport]


class Measuring:
    """Measures the base and the stages of one run."""

    def __init__(self, recipe: Recipe, shelf: Shelf, base_folder: Path) -> None:
        self.settings, self.shelf, self.base_folder = recipe.measure, shelf, base_folder
        self.on_bad_rows = recipe.on_bad_rows
        gain: list[tuple[Suite, Role]] = [(suite, "gain") for suite in recipe.measure.gain]
        self.suites = [*gain, *((suite, "keep") for suite in recipe.measure.keep)]
        self.name = hash_json(
            [
                [[suite.fingerprint(), suite.label, role] for suite, role in self.suites],
                recipe.measure.shots,
                recipe.measure.seed,
            ]
        )
        self.found: dict[str, dict[str, Any]] = {}
        """what `measure.json` holds, by stage"""

    def base(self, key: str, say: Callable[[str], None]) -> None:
        """Measure the untuned base, with and without worked examples."""
        name = hash_json([self.name, key])
        # The base's own samples lie in the cache too: without it, they are made again before a stage needs them.
        if (self.shelf.cache / "scores").is_dir() and self._is_current(BASE, self.base_folder, name):
            return
        model = ready(self.shelf.load(BASE))
        measured = measure_model(
            model,
            self.suites,
            self.shelf.cache,
            seed=self.settings.seed,
            shots=self.settings.shots,
            say=lambda text: say(f"{BASE}: {text}"),
        )
        self._write(BASE, self.base_folder, {**measured, "key": name, "base_fingerprint": model.fingerprint})

    def stage(self, planned: Planned, folder: Path, outputs: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Measure the model that a stage made.

        Args:
            planned: the stage.
            folder: where it lies.
            outputs: names the content of every stage so far.
        """
        name = hash_json([self.name, [outputs[model] for model in (planned.name, planned.previous, BASE)]])
        if self._is_current(planned.name, folder, name):
            return
        base = self.found[BASE]
        measured = measure_model(
            ready(self.shelf.load(planned.name)),
            self.suites,
            self.shelf.cache,
            seed=self.settings.seed,
            base_fingerprint=base["base_fingerprint"],
            load_base=lambda: ready(self.shelf.load(BASE)),
            base_reports=base["suites"],
            few_shot_reports=base.get("few_shot"),
            previous_reports=self.found[planned.previous]["suites"],
            say=lambda text: say(f"{planned.name}: {text}"),
        )
        self._write(planned.name, folder, {**measured, "key": name})

    def leaks(self, planned: Planned) -> list[str]:
        """Say which suites score rows that the stage trains on, or chooses by."""
        learned = [self.shelf.bind(source) for source in planned.step.stage.sources()]
        stage = replace_sources(planned.step.stage, self.shelf.bind)
        chosen_by = [found for found in methods_in(stage) if planned.makes_model and isinstance(found, Suite)]
        looked_at = {content for suite in chosen_by for content in suite.contents(self.shelf.cache, 0)}
        said = []
        for suite, _ in self.suites:
            scored = pa.array(suite.contents(self.shelf.cache, self.settings.seed), pa.large_string())
            if not len(scored):
                continue
            met = looked_at.intersection(scored.to_pylist())
            for source in learned:
                # The few are looked up among the many, which may be millions and stay on disk.
                learned_contents = source.open("train", self.shelf.cache, self.on_bad_rows).table["content"]
                met.update(learned_contents.filter(pc.is_in(learned_contents, value_set=scored)).to_pylist())
            if met:
                said.append(
                    f"{suite.label} scores {len(met)} rows that this stage trains on or chooses by: its value says "
                    "little; give the source a test_share, in both places, or measure on other rows"
                )
        return said

    def read(self, name: str, folder: Path) -> None:
        """Take up what a stage measured itself."""
        found = read_json(folder / "measure.json")
        if found:
            self.found[name] = found

    def reports(self, name: str) -> Reports:
        """Return a stage's suites."""
        reports: Reports = self.found[name]["suites"]
        return reports

    def matrix(self, planned: Sequence[Planned]) -> Matrix | None:
        """Return every model that has been measured on every suite, None before the base is."""
        if BASE not in self.found:
            return None
        rows: list[tuple[str, Reports]] = [(BASE, self.reports(BASE))]
        if self.found[BASE].get("few_shot"):
            rows.append((FEW_SHOT, self.found[BASE]["few_shot"]))
        measured = [stage for stage in planned if stage.name in self.found]
        rows += [(stage.name, self.reports(stage.name)) for stage in measured]
        place = {name: row for row, (name, _) in enumerate(rows)}
        lineage = _lineage(measured, place)
        learned = self._learned_at(measured, place, lineage)
        return transfer_matrix(rows, learned, lineage, self._experts(measured, place, learned))

    def _experts(
        self, measured: Sequence[Planned], place: Mapping[str, int], learned: Mapping[str, int]
    ) -> dict[str, Expert]:
        """Return each suite's single-task expert: a stage from the base that trains on nothing but its data."""
        by_row = {place[stage.name]: stage for stage in measured}
        experts: dict[str, Expert] = {}
        for suite, _ in self.suites:
            labels = {source.label for source in suite.sources()}
            for stage in measured:
                is_alone = stage.previous == BASE and stage.sources.keys() <= labels and not stage.data
                if suite.label not in learned or not stage.sources or not stage.makes_model or not is_alone:
                    continue
                learner = by_row[learned[suite.label]]
                if learner.name != stage.name and learner.previous != BASE:
                    losses = [self._losses(it) if _aim(it) == _aim(learner) else [] for it in (stage, learner)]
                    experts.setdefault(suite.label, Expert(place[stage.name], *losses))
        return experts

    def _losses(self, stage: Planned) -> list[float]:
        """Return the loss of each training step of a stage."""
        file = self.shelf.folders[stage.name] / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [loss for line in lines if (loss := json.loads(line).get("loss")) is not None]

    def _learned_at(
        self, measured: Sequence[Planned], place: Mapping[str, int], lineage: Sequence[int]
    ) -> dict[str, int]:
        """Return the row of the first stage, on the way to the last model, that trained on each suite to gain."""
        learned: dict[str, int] = {}
        for suite, role in self.suites:
            labels = {source.label for source in suite.sources()}
            stages = [
                stage
                for stage in measured
                if stage.makes_model and labels & stage.sources.keys() and place[stage.name] in lineage
            ]
            if role == "gain" and stages:
                learned[suite.label] = place[stages[0].name]
        return learned

    def _is_current(self, stage: str, folder: Path, name: str) -> bool:
        found = read_json(folder / "measure.json")
        if found.get("key") != name:
            return False
        self.found[stage] = found
        return True

    def _write(self, stage: str, folder: Path, measured: dict[str, Any]) -> None:
        write_json(folder / "measure.json", measured)
        self.found[stage] = measured


def _aim(stage: Planned) -> list[dict[str, Any]]:
    """Return what a stage trains towards."""
    return [method.written() for method in methods_in(stage.step.stage) if isinstance(method, Objective)]


def _lineage(measured: Sequence[Planned], place: Mapping[str, int]) -> list[int]:
    """Return the rows from the base to the last model, each made from the one before."""
    models = {stage.name: stage for stage in measured if stage.makes_model}
    chain: list[int] = []
    name = list(models)[-1] if models else BASE
    while name != BASE:
        chain.append(place[name])
        name = models[name].previous
    return [place[BASE], *reversed(chain)]


def ready(model: Model) -> Model:
    """Put a model on the fastest device, and hold half-precision weights in float32 where that is faster."""
    for member in model.members:
        member.module.to(best_device())
        weight = next(member.module.parameters())
        if weight.dtype in (torch.bfloat16, torch.float16) and not has_fast_bf16(weight.device):
            hold_in(member, torch.float32)
    return model


def evaluate(
    model: Model,
    suites: Iterable[Suite | str | Mapping[str, Any]],
    *,
    base: Model | None = None,
    examples: int | None = 200,
    shots: int = 0,
    seed: int = 0,
    cache: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Measurement:
    """Measure a model on suites, and compare it with another where one is given.

    Args:
        model: the model.
        suites: as in a recipe: `lab/reverse`, `drift`, `{"perplexity": {"source": "held-out.jsonl"}}`.
        base: the model that it is compared with.
        examples: examples of each suite at most, where the suite does not say.
        shots: worked examples of a further, few-shot arm.
        seed: of the choice of examples and of the bootstrap.
        cache: keeps scores, so that nothing is measured twice; nothing is kept without.
        say: takes a line for the user before each suite.

    Returns:
        `suites` by label, each with `value`, `low`, `high` (95 % interval), `scores`, `samples`, `changes`.

    Example:
        ```python
        base, tuned = temper.load_model("lab:tiny"), temper.load_model("runs/mine", "adapt")
        report = temper.evaluate(tuned, ["lab/reverse", "lab/copy"], base=base)
        print(report["suites"]["lab/copy"]["changes"]["base"]["difference"])
        ```
    """
    asked = validate(_Asked, {"suites": list(suites)})
    parsed: list[tuple[Suite, Role]] = [(with_defaults(suite, examples=examples), "gain") for suite in asked.suites]
    with tempfile.TemporaryDirectory(prefix="temper-") if cache is None else nullcontext(cache) as place:
        base_reports = None
        if base is not None:
            base_reports = measure_model(base, parsed, Path(place), seed=seed, say=say)["suites"]
        return measure_model(
            model,
            parsed,
            Path(place),
            seed=seed,
            shots=shots,
            base=base,
            base_fingerprint="" if base is None else base.fingerprint,
            base_reports=base_reports,
            say=say,
        )


class _Asked(Settings):
    suites: tuple[Suite, ...]
