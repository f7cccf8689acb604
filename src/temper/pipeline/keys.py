"""What names a stage's folder: everything that its result depends on, and nothing else.

Decisions:
- In the key: the kind and the resolved settings, the seed, `on_bad_rows`, the version and source code of every
  method in it, the content of its data, and the keys of the stages that it reads (of the base: its content).
- Not in the key: names of stages (a renamed stage is the same stage), the path of the base, `measure:` and
  `gate:` (they look at a result and do not make it), the machine.
- A key says what a stage is asked to make. What its inputs turned out to be is compared besides (`run.py`), so
  that a stage that was forced and came out otherwise carries on to what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import Any

from temper.core.hashing import hash_json
from temper.core.methods import methods_in
from temper.data.source import Source
from temper.data.sources.stage import StageData
from temper.pipeline.base import Base
from temper.pipeline.recipe import Recipe, Step
from temper.pipeline.references import BASE, data_stages, previous_of
from temper.signals.setup import is_outside


@dataclass(frozen=True)
class Planned:
    """A stage with everything that is known before it runs."""

    step: Step
    key: str
    previous: str
    """the stage (or `base`) that its model is compared with: `Stage.starts_from`"""
    before: str
    """the nearest stage before it that makes a model, or `base`: the default of `from`"""
    models: tuple[str, ...]
    """the stages (or `base`) whose models it reads"""
    data: tuple[str, ...]
    """the stages whose data it reads"""
    sources: Mapping[str, str] = field(default_factory=dict)
    """fingerprint of each source, by label"""

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def kind(self) -> str:
        return self.step.stage.method_name

    @property
    def makes_model(self) -> bool:
        return self.step.stage.produces == "model"


def plan(recipe: Recipe, base_key: str) -> list[Planned]:
    """Name every stage of a recipe.

    Args:
        recipe: the stages.
        base_key: names the base by content.

    Raises:
        DataError: a source that is not there.
    """
    keys = {BASE: base_key}
    fingerprints: dict[str, str] = {}
    planned = []
    for step, before in zip(recipe.stages, previous_of(recipe.stages), strict=True):
        asked = step.stage.models(before)
        models = tuple(filterfalse(is_outside, asked))
        data = tuple(data_stages(step))
        sources = {
            label: fingerprint
            for label, source in _labelled(_sources(step))
            if (fingerprint := _fingerprint(source, fingerprints))
        }
        names = {name: keys[name] for name in (*models, *data) if name != BASE}
        content = step.stage.content()
        key = hash_json(
            {
                "kind": step.stage.method_name,
                "settings": _without_names(step.stage.written(), names),
                "seed": recipe.seed,
                "on_bad_rows": recipe.on_bad_rows,
                "code": code_versions(step),
                "sources": list(sources.values()),
                "models": [keys[name] for name in models],
                "outside": [Base(path=name).key(Path(), recipe.seed) for name in filter(is_outside, asked)],
                "data": [keys[name] for name in data],
                **({"content": content} if content else {}),
            }
        )
        keys[step.name] = key
        previous = step.stage.starts_from(before)
        planned.append(Planned(step, key, previous, before, models, data, sources))
    return planned


def code_versions(step: Step) -> dict[str, str]:
    """Return the version of every method's source code, by axis and name."""
    methods = methods_in(step.stage)
    return {f"{method.axis}/{method.method_name}": method.code_version() for method in methods}


def _sources(step: Step) -> list[Source]:
    """Return the sources outside of the recipe, however deep in the settings."""
    inside = [method for method in methods_in(step.stage) if isinstance(method, Source)]
    every = [*step.stage.sources(), *inside]
    unique: list[Source] = []
    for source in every:
        if not isinstance(source, StageData) and source not in unique:
            unique.append(source)
    return unique


def _labelled(sources: Sequence[Source]) -> list[tuple[str, Source]]:
    """Give every source a label of its own."""
    taken: set[str] = set()
    labelled = []
    for source in sources:
        label, number = source.label, 2
        while label in taken:
            label, number = f"{source.label} ({number})", number + 1
        taken.add(label)
        labelled.append((label, source))
    return labelled


def _fingerprint(source: Source, known: dict[str, str]) -> str:
    """Fingerprint a source once, however many stages read it."""
    name = hash_json(source.written())
    if name not in known:
        known[name] = source.fingerprint()
    return known[name]


def _without_names(value: Any, names: Mapping[str, str]) -> Any:
    """Return settings in which the names of stages are replaced by their keys."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {names.get(key, key): _without_names(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_names(item, names) for item in value]
    return value
