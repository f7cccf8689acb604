"""What a run will cost, before anything trains: order, steps, tokens, operations, memory and time of every stage.

Decisions:
- Data is read through the stage's own encoder and stream, so steps and tokens are those of the run. Of rows that are
  too many to be encoded beforehand a tenth of the usual number of steps is read, and the rest is an estimate.
- Memory is traced (`engine/trace.py`); no weights are loaded. On a CPU the process' own share is that of the process
  that plans, after a few steps of a small model.
- Where a stage does not fit, other settings are traced too, and the ones that fit are named.
- Time is an estimate: operations over the speed of a small model on this machine, or over the speed that is given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from temper.core.errors import TemperError
from temper.data.rows import Rows
from temper.data.sources.stage import StageData
from temper.engine.calibrate import Speed, measure_speed, resident_bytes, small_model
from temper.engine.fit import Data, check_formats, prepare
from temper.engine.forecast import Elsewhere, Forecast, forecast, longest_pass
from temper.engine.precision import best_device
from temper.engine.settings import FitSettings, default_micro_tokens
from temper.hold.base import Hold
from temper.models.load import Outline, outline_model
from temper.models.model import Model
from temper.pipeline.base import Base
from temper.pipeline.keys import plan as name_stages
from temper.pipeline.machine import memory_bytes
from temper.pipeline.recipe import Recipe, Step
from temper.pipeline.references import BASE, data_stages, previous_of
from temper.pipeline.shelf import CACHE, read_json
from temper.report import format as fmt
from temper.signals.reference import START
from temper.signals.setup import is_outside
from temper.stages.train import Train
from temper.tune.base import Tune

PROCESS = "process"
"""what a training process holds besides its tensors"""


@dataclass(frozen=True)
class StagePlan:
    """What is known of a stage before it runs; what is not known is None."""

    name: str
    kind: str
    reads: tuple[str, ...]
    """stages (or `base`) whose models and data it reads"""
    is_done: bool = False
    steps: int | None = None
    tokens: float | None = None
    tokens_within: float = 0.0
    """half the width of the tokens' 95 % interval, where they are estimated"""
    flops: float | None = None
    seconds: float | None = None
    trainable_parameters: int | None = None
    memory_bytes: int | None = None
    memory: dict[str, int] = field(default_factory=dict)
    """where the memory goes, in bytes"""
    notes: tuple[str, ...] = ()
    problem: str | None = None
    """why it cannot work"""
    fixes: tuple[str, ...] = ()
    """settings with which it fits"""


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    stages: tuple[StagePlan, ...]
    parameters: int
    limit_bytes: int | None
    """memory that there is"""
    device: str

    @property
    def works(self) -> bool:
        """Whether nothing is known that cannot work."""
        return all(stage.problem is None for stage in self.stages)

    def total(self, name: str) -> float | None:
        """Add up `steps`, `tokens`, `flops` or `seconds` of what is still to be done; None where nothing is known."""
        known = [getattr(stage, name) for stage in self.stages if not stage.is_done]
        present = [value for value in known if value is not None]
        return float(sum(present)) if present else None

    def written(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        total = {name: self.total(name) for name in ("steps", "tokens", "flops", "seconds")}
        return {**asdict(self), "works": self.works, "total": total}


def plan(
    recipe: Recipe,
    *,
    runs: Path = Path("runs"),
    memory: int | None = None,
    flops_per_second: float | None = None,
    place: Elsewhere | None = None,
) -> Plan:
    """Plan a recipe's run.

    Args:
        recipe: the recipe.
        runs: the folder under which runs lie, to see what is done already.
        memory: bytes that there are; this machine's where None.
        flops_per_second: speed of all the processes together that are to run it; measured here where None.
        place: processes that are not there; memory is then that of the tensors of one of them, and time is known
            only where a speed is given.

    Raises:
        TemperError: a base that cannot be found, or data that is not there.
    """
    cache = runs / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    outline = recipe.base.outline(cache, recipe.seed)
    return _Planning(recipe, runs, cache, outline, memory, flops_per_second, place).plan()


@dataclass
class _Planning:
    recipe: Recipe
    runs: Path
    cache: Path
    outline: Outline
    memory: int | None
    flops_per_second: float | None
    place: Elsewhere | None

    def plan(self) -> Plan:
        recipe, device = self.recipe, best_device()
        with torch.device("meta"):
            self.shape = outline_model(self.outline)
        own = None if self.place else _memory_of(device)
        self.limit = own if self.memory is None else self.memory
        self.done = self._done()
        self.prompts = self._prompt_lengths()
        prepared: dict[str, Data] = {}
        sizes: dict[str, int] = {}
        found: dict[str, StagePlan] = {}
        for step, previous in zip(recipe.stages, previous_of(recipe.stages), strict=True):
            blank = StagePlan(step.name, step.stage.method_name, _reads(step, previous), step.name in self.done)
            found[step.name] = blank
            if isinstance(step.stage, FitSettings) and not blank.is_done:
                before = resident_bytes()
                found[step.name], data = self._prepare(step, blank)
                if data is not None:
                    prepared[step.name] = data
                    sizes[step.name] = max(0, resident_bytes() - before)
            elif not blank.is_done:
                found[step.name] = replace(blank, **self._untrained(step))
        speed = self._speed(prepared)
        own = resident_bytes() - sum(sizes.values()) if device.type == "cpu" else 0
        for name, data in prepared.items():
            process = own + sizes[name] if device.type == "cpu" and self.place is None else 0
            found[name] = self._train(found[name], recipe.step(name), data, process, speed)
        parameters = sum(parameter.numel() for parameter in self.shape.module.parameters())
        where = str(device) if self.place is None else f"each of {self.place.processes} processes"
        return Plan(tuple(found.values()), parameters, self.limit, where)

    def _prompt_lengths(self) -> dict[str, int]:
        """Return how many positions soft prompts take before every document while a stage trains."""
        made: dict[str, int] = defaultdict(int)  # of a model from elsewhere it is not known
        read: dict[str, int] = {}
        for step, previous in zip(self.recipe.stages, previous_of(self.recipe.stages), strict=True):
            if step.stage.produces == "model":
                made[step.name] = step.stage.prompt_length(made, previous)
            if isinstance(step.stage, Train):
                lenders = [other.stage for other in self.recipe.stages if other.name in step.stage.with_prompts]
                lent = sum(stage.tune.prompt_length for stage in lenders if isinstance(stage, Train))
                read[step.name] = made[step.stage.starts_from(previous)] + lent
        return read

    def _with_prompts(self, model: Model, name: str) -> Model:
        """Return a model without content with prompts of the length that a stage's has."""
        length = self.prompts.get(name, 0)
        if length:
            width = model.module.get_input_embeddings().weight.shape[1]
            model = replace(model, prompts=(torch.zeros(length, width, device="cpu"),))
        return model

    def _done(self) -> dict[str, Path]:
        """Return the folders of the stages that a run would not do again."""
        folder = self.runs / self.recipe.name
        if not (folder / "run.json").is_file():
            return {}
        base = self.recipe.base.key(self.cache, self.recipe.seed)
        outputs: dict[str, str | None] = {BASE: base}
        done: dict[str, Path] = {}
        for planned in name_stages(self.recipe, base):
            places = [path for path in sorted(folder.glob(f"*-{planned.key}")) if path.is_dir()]
            record = read_json(places[0] / "stage.json") if places else {}
            inputs = [outputs[name] for name in (*planned.models, *planned.data)]
            stands = record.get("status") == "done" and record.get("inputs") == inputs
            if stands and planned.step.stage.stands(places[0], record.get("details", {})):
                done[planned.name] = places[0]
                outputs[planned.name] = record["output"]
            else:
                outputs[planned.name] = None
        return done

    def _prepare(self, step: Step, blank: StagePlan) -> tuple[StagePlan, Data | None]:
        """Read a training stage's data, as far as it is there."""
        settings: Any = step.stage
        made = [name for name in data_stages(step) if name not in self.done]
        if made:
            note = f"reads what {' and '.join(made)} will make: tokens and memory are known when that has run"
            steps = settings.steps
            return replace(blank, steps=steps, notes=(note,)), None
        try:
            rows = [self._open(source) for source in settings.data]
            check_formats(Rows.concatenate(rows, ""), settings.objective)
            seed = self._seed(settings)
            return blank, prepare(
                self._with_prompts(self.shape, step.name), rows, settings, seed, self.recipe.on_bad_rows, self._open
            )
        except TemperError as error:
            return replace(blank, problem=str(error)), None

    def _open(self, source: Any) -> Rows:
        if isinstance(source, StageData):
            source = source.model_copy(update={"folder": self.done[source.stage]})
        rows: Rows = source.open("train", self.cache, self.recipe.on_bad_rows)
        return rows

    def _seed(self, settings: Any) -> int:
        return int(self.recipe.seed if settings.seed is None else settings.seed)

    def _untrained(self, step: Step) -> dict[str, Any]:
        """Return what is known of a stage that does not train."""
        size = sum(one.numel() * one.element_size() for one in self.shape.module.parameters())
        sources = [source.label for source in step.stage.sources() if not isinstance(source, StageData)]
        notes = [f"reads {', '.join(sources)}"] if sources else []
        if step.stage.models(BASE):
            notes.append("holds one model")
            return {"memory": {"weights": size}, "notes": tuple(notes)}
        return {"notes": tuple(notes)}

    def _speed(self, prepared: dict[str, Data]) -> Speed | None:
        """Time a small model on the first training stage's settings: the process then holds what a training needs."""
        given = self.flops_per_second
        if self.place is not None:
            return None if given is None else Speed(given, math.inf)
        if not prepared:
            return None
        name, data = next(iter(prepared.items()))
        settings: Any = self.recipe.step(name).stage
        try:
            speed = measure_speed(lambda: small_model(self.outline), settings, data)
        except TemperError:
            # What does not fit two blocks, or no model at all, is told where it is planned; the speed is of the rest.
            plain = {"tune": FitSettings().tune, "retain": (), "optimizer": FitSettings().optimizer}
            speed = measure_speed(lambda: small_model(self.outline), settings.model_copy(update=plain), data)
        return speed if given is None else Speed(given, math.inf)

    def _train(self, blank: StagePlan, step: Step, data: Data, process: int, speed: Speed | None) -> StagePlan:
        settings: Any = step.stage
        try:
            found = self._forecast(step.name, settings, data)
        except TemperError as error:
            return replace(blank, problem=str(error))
        work, notes = found.work, [found.why] if found.why else []
        if work is None:
            return replace(blank, notes=tuple(notes))
        if work.flops_before:
            notes.append(f"looks at rows before it trains: {fmt.flops(work.flops_before)} a pass, one in the time")
        if work.kept_bytes:
            blocks = "block does" if found.num_frozen == 1 else f"{found.num_frozen} blocks do"
            notes.append(
                f"the first {blocks} not train: what they give is kept on disk for later passes over the "
                f"data, {fmt.size(work.kept_bytes)} at most"
            )
        seconds = None
        if speed is not None:
            passes = (work.flops + work.flops_before) / speed.flops_per_second
            seconds = passes + work.steps * found.trainable / speed.updates_per_second
        if settings.validation is not None and settings.validation.patience is not None:
            notes.append("may stop early (patience)")
        held = None if found.memory is None else found.memory.bytes + process
        parts = {} if found.memory is None else {PROCESS: process, **found.memory.parts}
        planned = replace(
            blank,
            steps=work.steps,
            tokens=work.tokens,
            tokens_within=work.tokens_within,
            flops=work.flops,
            seconds=seconds,
            trainable_parameters=found.trainable,
            memory_bytes=held,
            memory={name: size for name, size in parts.items() if size > 0},
            notes=tuple(notes),
        )
        if held is None or self.limit is None or held <= self.limit:
            return planned
        fixes = tuple(self._fixes(step, data, process))
        return replace(
            planned, problem=f"needs {fmt.size(held)} of memory where there are {fmt.size(self.limit)}", fixes=fixes
        )

    def _forecast(self, stage: str, settings: Any, data: Data) -> Forecast:
        def make(name: str) -> Model:
            """Return a model by its name; all that a recipe's stages make have the base's shape."""
            if not is_outside(name):
                return self._with_prompts(outline_model(self.outline), stage if name == START else name)
            base = Base.model_validate({"path": name})
            return outline_model(base.outline(self.cache, self.recipe.seed))

        return forecast(make, data, settings, self._seed(settings), self.place)

    def _fixes(self, step: Step, data: Data, process: int) -> Iterator[str]:
        """Yield settings with which the stage fits, found by tracing it with them: the mildest of each kind."""
        settings: Any = step.stage
        assert self.limit is not None
        for family in _changes(settings, longest_pass(data)):
            for text, changes in family:
                try:
                    found = self._forecast(step.name, settings.model_copy(update=changes), data).memory
                except TemperError:
                    continue
                if found is not None and found.bytes + process <= self.limit:
                    yield f"{text} ({fmt.size(found.bytes + process)})"
                    break


Changes = tuple[str, dict[str, Any]]


def _changes(settings: FitSettings, longest: int) -> list[list[Changes]]:
    """Return changes that may make a stage fit, by kind, the mildest first."""
    micro = default_micro_tokens(settings)
    smaller = [size for size in (micro // 2, micro // 4, micro // 8, micro // 16) if size >= longest]
    smallest = smaller[-1] if smaller else micro
    recompute: list[Changes] = [(f"recompute: {share}", {"recompute": share}) for share in (0.5, 1.0)]
    lower: list[Changes] = [(f"micro_tokens: {size}", {"micro_tokens": size}) for size in smaller]
    both = {"recompute": 1.0, "micro_tokens": smallest}
    forms = sorted(Hold.methods(), key=lambda name: -Hold.methods()[name].bits)
    held: list[Changes] = [(f"hold: {name}", {"hold": Hold.parse(name)}) for name in forms]
    lora = {"tune": Tune.parse("lora")}
    least = {**lora, **both, "hold": Hold.parse(forms[-1])}
    return [
        [one for one in recompute if one[1]["recompute"] > settings.recompute],
        lower,
        [(f"recompute: 1.0 and micro_tokens: {smallest}", both)],
        held if settings.hold is None else [],
        [
            ("tune: lora", lora),
            (f"tune: lora, recompute: 1.0 and micro_tokens: {smallest}", {**lora, **both}),
            (f"tune: lora, hold: {forms[-1]}, recompute: 1.0 and micro_tokens: {smallest}", least),
        ],
    ]


def _reads(step: Step, previous: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*step.stage.models(previous), *data_stages(step)]))


def _memory_of(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_bytes()
