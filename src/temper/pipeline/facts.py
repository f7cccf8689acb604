"""What was tried and measured of methods, for their pages: what they combine with, and whether they do what is claimed.

Both are read from files where they lie, and known nowhere else:
- `combinations.json`, which `temper methods --probe --to FOLDER/combinations.md` writes;
- `effects/<axis>/<method>.json`, one for each study of a claim, whose numbers are of several seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from temper.core.errors import DataError, nearest
from temper.pipeline.probe import Outcome, Trial, load_combinations

COMBINATIONS, EFFECTS = "combinations.json", "effects"

VERBS: dict[Outcome, str] = {
    "refused": "not with",
    "exclusive": "excludes",
    "defect": "fails with",
    "untried": "not tried with",
}
"""what is said of methods that do not work with another one"""


class Contrast(BaseModel):
    """One arm of a study less another, over seeds."""

    model_config = ConfigDict(frozen=True)

    name: str
    of: str
    against: str
    expected: Literal["above", "below", "none"]
    mean: float
    low: float
    high: float
    verdict: Literal["shown", "not shown", "contradicted"]


class Study(BaseModel):
    """A claim of a method, and what was measured of it."""

    model_config = ConfigDict(frozen=True)

    method: str
    """`axis/name`"""
    also: tuple[str, ...] = ()
    """further methods that it is about"""
    claim: str
    finding: str
    unit: str
    arms: dict[str, tuple[float, ...]]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Facts:
    """What is known, by the method's `axis/name`."""

    trials: tuple[Trial, ...] = ()
    studies: tuple[Study, ...] = ()

    @classmethod
    def read(cls, folder: Path, known: Iterable[str]) -> Facts:
        """Read a folder's files; what is not there is not known.

        Args:
            known: `axis/name` of every method.

        Raises:
            DataError: a study that cannot be read, or that is of no known method.
        """
        combinations = folder / COMBINATIONS
        trials = load_combinations(combinations) if combinations.is_file() else []
        names = set(known)
        files = sorted((folder / EFFECTS).glob("*/*.json"))
        return cls(tuple(trials), tuple(_study(file, folder / EFFECTS, names) for file in files))

    def combines(self, method: str) -> list[str]:
        """Return a line of Markdown for each axis whose methods were tried with a method; none where none was."""
        by_axis: dict[str, list[tuple[str, Trial]]] = defaultdict(list)
        for trial in self.trials:
            if method in trial.methods and len(trial.methods) == 2:
                other = trial.methods[trial.methods[0] == method]
                axis, _, name = other.partition("/")
                by_axis[axis].append((name, trial))
        alone = [f"by itself: {it.outcome}: {it.reason}" for it in self.trials if _is_broken(it, method)]
        return [*alone, *(f"{axis}: {_with_axis(pairs)}" for axis, pairs in sorted(by_axis.items()))]

    def effects(self, method: str) -> list[str]:
        """Return what was measured of a method's claims as paragraphs of Markdown; nothing where nothing was."""
        return [part for study in self.studies if method in (study.method, *study.also) for part in _effect(study)]


def _is_broken(trial: Trial, method: str) -> bool:
    return trial.methods == (method,) and trial.outcome != "works"


def _study(file: Path, folder: Path, known: set[str]) -> Study:
    try:
        study = Study.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, json.JSONDecodeError) as error:
        reason = f"is no study: {' '.join(str(error).split())}"
        raise DataError(file, None, reason, "write it anew, or remove it") from error
    place = file.relative_to(folder).with_suffix("").as_posix()
    if study.method != place:
        raise DataError(file, None, f"is a study of {study.method!r}", f"call it {study.method}.json, as its method")
    for name in (study.method, *study.also):
        if name not in known:
            raise DataError(file, None, f"is a study of {name!r}, which is no method", nearest(name, known))
    return study


def _with_axis(pairs: Sequence[tuple[str, Trial]]) -> str:
    """Say in a line with which methods of one axis another method works, and with which it does not, and why."""
    working = [name for name, trial in pairs if trial.outcome == "works"]
    if len(working) == len(pairs):
        return f"all {len(pairs)}" if len(pairs) > 1 else _code(working)
    said = [_code(working) if working else "none"]
    for outcome, verb in VERBS.items():
        reasons: dict[str, list[str]] = defaultdict(list)
        for name, trial in pairs:
            if trial.outcome == outcome:
                reasons[trial.reason].append(name)
        said += [f"{verb} {_code(names)} ({reason})" for reason, names in reasons.items()]
    return "; ".join(said)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _effect(study: Study) -> list[str]:
    seeds = max((len(values) for values in study.arms.values()), default=0)
    rows = ["| contrast | arms | expected | difference | 95 % interval | verdict |", "|---|---|---|---|---|---|"]
    for it in study.contrasts:
        expected = "none (control)" if it.expected == "none" else it.expected
        interval = f"{it.low:.3g} to {it.high:.3g}"
        cells = (it.name, f"{it.of} - {it.against}", expected, f"{it.mean:.3g}", interval, it.verdict)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    measured = f"Measured on the lab's models, {seeds} seeds: {study.unit}."
    return [f"**Claim:** {study.claim}", measured, "\n".join(rows), *((study.finding,) if study.finding else ())]
