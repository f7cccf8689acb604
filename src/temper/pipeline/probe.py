"""Which methods combine: every pair across axes is tried on a tiny model, and nothing is known beforehand.

Decisions:
- Where a method belongs in a recipe is read from the schema (`pipeline/places.py`). Settings that a method cannot do
  without come from its own `example`, those of the stage around it from `beside`; what examples name lies in the
  probe's folder (`pipeline/samples.py`), in which it works. No method, axis or stage is named here.
- A pair is one small recipe: the stages that take the two, and the stage that trains (the kind with the most choices),
  which makes two steps. It goes through the recipe's own validation and the stages' own `run`.
- The rows' format is one that all methods of the recipe take, where there is one; else one that all those take which
  read the same rows. The lab makes them in that format, and where it cannot, written rows stand in for the lab's.
- `works`, `refused` (a setting, a row or a model is refused with its reason, an answer), `exclusive` (both need one
  place of a stage, which holds one: there is no recipe to try), `defect` (any other error: something broke where it
  should have worked or refused), `untried` (a package that is not installed, a setting that has neither a default nor
  an example).
- Nothing is said of a recipe that does not hold what was asked for: that all of it stands there is checked.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic_core import PydanticCustomError

from temper.core.errors import DataError, MissingExtra, ModelError, SettingError, nearest
from temper.core.files import write_json
from temper.core.methods import AXES, Method, methods_in
from temper.data.example import Format
from temper.data.prepare import Reading
from temper.data.source import Source
from temper.data.sources.file import FileSource
from temper.data.sources.stage import StageData
from temper.lab.source import Lab
from temper.pipeline.base import Base
from temper.pipeline.catalogue import import_methods
from temper.pipeline.places import Draft, ExclusiveError, axes_of, find_places
from temper.pipeline.recipe import Recipe, Step
from temper.pipeline.references import BASE, data_stages, previous_of, replace_sources
from temper.pipeline.samples import MODEL, ROWS, lay_out
from temper.pipeline.shelf import RunContext, Shelf
from temper.stages.base import Stage

Outcome = Literal["works", "refused", "exclusive", "defect", "untried"]
LAB_FORMS: tuple[Format, ...] = get_args(Lab.model_fields["form"].annotation)
RUN = "run"
"""folder of the recipe that is tried, in the probe's own"""
SHOWN = 300
"""characters of a reason that are kept"""


@dataclass(frozen=True)
class Trial:
    """What came of one method, or of two together."""

    methods: tuple[str, ...]
    """`axis/name` of each"""
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


class Probe:
    """Tries methods together, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        import_methods()
        self.folder = folder
        self.places = find_places()
        kinds = Stage.methods()
        self.main = max(sorted(kinds), key=lambda name: len(list(axes_of(kinds[name]))))
        lay_out(folder)

    def methods(self) -> list[type[Method]]:
        """Return every method that has a place, axis by axis."""
        named = [axis for _, axis in sorted(AXES.items()) if axis is Stage or axis.axis in self.places]
        return [method for axis in named for method in axis.methods().values()]

    def run(self, *methods: type[Method]) -> Trial:
        """Try methods in one recipe."""
        names = tuple(f"{method.axis}/{method.method_name}" for method in methods)
        started = time.monotonic()
        outcome, reason = self._outcome(methods)
        reason = reason.replace(f"{self.folder}/", "")  # equal reasons read alike, whatever the folder is called
        return Trial(names, outcome, reason[:SHOWN], round(time.monotonic() - started, 3))

    def _outcome(self, methods: Sequence[type[Method]]) -> tuple[Outcome, str]:
        for method in methods:
            lacking = _lacking(method)
            if lacking:
                return "untried", f"its {lacking} has no default, and it declares no `example`"
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.chdir(self.folder):
                recipe = Recipe.parse(self.recipe(methods))
                absent = set(methods) - {type(it) for step in recipe.stages for it in methods_in(step.stage)}
                assert not absent, f"not in the recipe: {', '.join(sorted(it.method_name for it in absent))}"
                self._go(recipe)
        except ExclusiveError as error:
            return "exclusive", str(error)
        except (SettingError, DataError, ModelError, PydanticCustomError) as error:
            return "refused", " ".join(str(error).split())
        except MissingExtra as error:
            return "untried", str(error)
        except Exception as error:  # whatever broke is what the probe is there to tell
            return "defect", " ".join(f"{type(error).__name__}: {error}".split())
        return "works", ""

    def recipe(self, methods: Sequence[type[Method]]) -> dict[str, Any]:
        """Return the recipe in which methods stand, each in its place; a stage is named by its kind.

        Raises:
            ExclusiveError: two of them need one place.
        """
        kinds = Stage.methods()
        draft = Draft(self.places, methods)
        for method in (*methods, kinds[self.main]):
            draft.put(method)
        own = draft.stages()
        named = {kind: dict(kinds[kind].example) for kind in sorted(_named_stages(own) - own.keys())}
        settings = {**named, **own}
        # Data is made before the training that reads it, unless it is made from that very training.
        made = [kind for kind in settings if kinds[kind].produces == "data" and kind != self.main]
        before = [kind for kind in made if self.main not in Stage.parse({kind: settings[kind]}).models(BASE)]
        after = [kind for kind in settings if kind not in (*before, self.main)]
        if before:
            self._feed(settings, before, is_asked=(kinds[self.main], _data_field(kinds[self.main])) in draft.taken)
        steps = [{"name": kind, kind: settings[kind]} for kind in (*before, self.main, *after)]
        return {"name": "probe", "base": str(self.folder / MODEL), "measure": {"keep": []}, "stages": steps}

    def _feed(self, settings: dict[str, dict[str, Any]], made: list[str], is_asked: bool) -> None:
        """Let the training read what stages made; where its own data was asked for, they make it of that."""
        kinds = Stage.methods()
        field = _data_field(kinds[self.main])
        first, *rest = settings[self.main][field]
        settings[self.main][field] = [*made, *(source for source in rest if _stage_of(source) not in made)]
        if is_asked and _stage_of(first) is None:
            field = _data_field(kinds[made[0]])
            settings[made[0]][field] = [first, *settings[made[0]][field][1:]]

    def _go(self, recipe: Recipe) -> None:
        root = self.folder / RUN
        try:
            self._run_stages(recipe, root)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def _run_stages(self, recipe: Recipe, root: Path) -> None:
        shelf = Shelf(Base.model_validate(recipe.base.path), self.folder / "cache", recipe.seed)
        forms = _forms(recipe)
        for step, previous in zip(recipe.stages, previous_of(recipe.stages), strict=True):
            folder = root / step.name
            folder.mkdir(parents=True)
            record = {"name": step.name, "models": list(step.stage.models(previous))}
            write_json(folder / "stage.json", record)
            stage = replace_sources(step.stage, partial(_bound, shelf, forms[step.name]))
            context = RunContext(
                step.name, folder, shelf.cache, shelf, recipe.seed, recipe.on_bad_rows, lambda text: None
            )
            stage.run(context, previous)
            shelf.folders[step.name] = folder


def _data_field(kind: type[Stage]) -> str:
    """Return the field in which a stage is told what data it reads."""
    return next(name for axis, name, _ in axes_of(kind) if axis == Source.axis)


def _stage_of(written: object) -> str | None:
    """Return the stage whose data a source is, None for another source."""
    source = Source.parse(written)
    return source.stage if isinstance(source, StageData) else None


def _named_stages(settings: dict[str, dict[str, Any]]) -> set[str]:
    """Return the stages whose data other stages' settings name."""
    sources = [method for kind, own in settings.items() for method in methods_in(Stage.parse({kind: own}))]
    return {source.stage for source in sources if isinstance(source, StageData)}


def _forms(recipe: Recipe) -> dict[str, Format | None]:
    """Return the format in which each stage gets its rows; None where no format suits all that read them."""
    common = _common_form(recipe.stages)
    if common is not None:
        return dict.fromkeys((step.name for step in recipe.stages), common)
    linked = {step.name: {step.name, *data_stages(step)} for step in recipe.stages}
    groups = {
        step.name: [other for other in recipe.stages if linked[step.name] & linked[other.name]]
        for step in recipe.stages
    }
    return {name: _common_form(group) for name, group in groups.items()}


def _common_form(steps: Sequence[Step]) -> Format | None:
    """Return a format that every method of some stages takes, one that the lab makes where there is one."""
    forms: list[Format] = list(dict.fromkeys((*LAB_FORMS, *get_args(Format))))
    taken = [method.formats for step in steps for method in methods_in(step.stage) if method.formats is not None]
    fitting = [form for form in forms if all(form in formats for formats in taken)]
    return fitting[0] if fitting else None


def _bound(shelf: Shelf, form: Format | None, source: Source) -> Source:
    """Return a source that finds its rows, in a format where it can give them in that."""
    if isinstance(source, Lab) and form is not None:
        return source.model_copy(update={"form": form}) if form in LAB_FORMS else FileSource(path=(ROWS,), format=form)
    if isinstance(source, Reading) and source.format == "auto" and form is not None:
        return source.model_copy(update={"format": form})
    return shelf.bind(source)


def probe(only: str | None = None, say: Callable[[str], None] = lambda text: None) -> list[Trial]:
    """Try every method alone, and every pair across axes.

    A method that fails alone, beside the defaults of the rest, is still tried in pairs: another choice may suit it.

    Args:
        only: pairs in which this method (`name` or `axis/name`) or a method of this axis stands; `one+other` for those
            of the two; None for all.
        say: takes a line now and then.

    Raises:
        SettingError: no such method and no such axis, or two of one axis.
    """
    with tempfile.TemporaryDirectory(prefix="temper-") as folder:
        running = Probe(Path(folder))
        methods = running.methods()
        sides = [_named(methods, name) for name in only.split("+", 1)] if only is not None else [methods]
        pairs = [
            pair for pair in itertools.combinations(methods, 2) if pair[0].axis != pair[1].axis and _in(pair, sides)
        ]
        if len(sides) == 2 and not pairs:
            reason = f"names nothing but {sides[0][0].axis} on both sides, and pairs are of two axes"
            raise SettingError("name", only, reason, "name two of different axes; `temper methods` lists them")
        trials = [running.run(method) for method in methods if any(method in side for side in sides)]
        last = time.monotonic()
        for number, (one, other) in enumerate(pairs, 1):
            trials.append(running.run(one, other))
            if time.monotonic() - last > 10:
                last = time.monotonic()
                say(f"{number} of {len(pairs)} pairs")
        return trials


def _named(methods: Sequence[type[Method]], name: str) -> list[type[Method]]:
    """Return the methods that a name, `axis/name` or an axis stands for."""
    found = [method for method in methods if name in _names(method)]
    if not found:
        known = sorted({name for method in methods for name in _names(method)})
        reason = "is no method and no axis with a place in a recipe"
        raise SettingError("name", name, reason, nearest(name, known))
    return found


def _in(pair: tuple[type[Method], type[Method]], sides: Sequence[Sequence[type[Method]]]) -> bool:
    """Tell whether one of a pair is on the first side, and the other on the second where there is one."""
    one, other = pair
    if len(sides) == 1:
        return one in sides[0] or other in sides[0]
    return (one in sides[0] and other in sides[1]) or (one in sides[1] and other in sides[0])


def _lacking(method: type[Method]) -> str:
    """Return the names of settings that have neither a default nor an example."""
    fields = {field.alias or name: field for name, field in method.model_fields.items()}
    return ", ".join(name for name, field in fields.items() if field.is_required() and name not in method.example)


def _names(method: type[Method]) -> tuple[str, str, str]:
    return method.axis, method.method_name, f"{method.axis}/{method.method_name}"


MARKS: dict[Outcome, str] = {"works": "✓", "refused": "-", "exclusive": "/", "defect": "✗", "untried": "?"}


def write_combinations(trials: Sequence[Trial], path: Path) -> list[Path]:
    """Write the matrix as Markdown, and everything as JSON beside it.

    Returns:
        the two files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(combinations_page(trials), encoding="utf-8")
    data = path.with_suffix(".json")
    write_json(data, [{key: value for key, value in asdict(trial).items() if key != "seconds"} for trial in trials])
    return [path, data]


def combinations_page(trials: Sequence[Trial]) -> str:
    """Return what combines, what does not and why, as Markdown."""
    alone = [trial for trial in trials if len(trial.methods) == 1]
    pairs = [trial for trial in trials if len(trial.methods) == 2]
    counts = Counter(trial.outcome for trial in pairs)
    total = ", ".join(f"{counts[outcome]} {outcome}" for outcome in MARKS)
    parts = [
        "# What combines",
        "Made by `temper methods --probe --to docs/combinations.md`: each method alone, then each pair of methods of "
        "different axes, in a recipe that trains a tiny model for two steps. Nothing is listed by hand.",
        f"{len(pairs)} pairs: {total}.",
        "✓ works, - refused with a reason, / exclusive: both need one place of a stage, which holds one, ✗ defect: an "
        "error that is no clear refusal, ? untried: a package that is missing, or a setting without default and "
        "example.",
    ]
    broken = [trial for trial in alone if trial.outcome != "works"]
    if broken:
        listed = "\n".join(f"- {MARKS[trial.outcome]} `{trial.methods[0]}`: {_text(trial)}" for trial in broken)
        parts += ["## Methods that do not run beside the defaults of the rest", listed]
    by_axes: dict[tuple[str, str], list[Trial]] = {}
    for trial in pairs:
        one, other = (name.partition("/")[0] for name in trial.methods)
        by_axes.setdefault((one, other), []).append(trial)
    for (one, other), own in by_axes.items():
        tried = [trial for trial in own if trial.outcome != "untried"]
        if tried:
            parts += [f"## {one} and {other}", *_matrix(tried)]
    return "\n\n".join(parts) + "\n"


def _matrix(trials: Sequence[Trial]) -> list[str]:
    """Return the table of two axes, and the reasons below it."""
    first, second = (list(dict.fromkeys(trial.methods[side] for trial in trials)) for side in (0, 1))
    if all(trial.outcome == "works" for trial in trials):
        return [f"All {len(trials)} combine: {_plain(first)} with {_plain(second)}."]
    marks = {trial.methods: MARKS[trial.outcome] for trial in trials}
    head = ["", *(name.partition("/")[2] for name in second)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in first:
        cells = [name.partition("/")[2], *(marks.get((name, other), "") for other in second)]
        lines.append(f"| {' | '.join(cells)} |")
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        if trial.outcome != "works":
            pair = " + ".join(f"`{name.partition('/')[2]}`" for name in trial.methods)
            reasons.setdefault(f"{MARKS[trial.outcome]} {_text(trial)}", []).append(pair)
    return ["\n".join(lines), "\n".join(f"- {', '.join(of)}: {reason}" for reason, of in reasons.items())]


def _plain(names: Sequence[str]) -> str:
    return ", ".join(f"`{name.partition('/')[2]}`" for name in names)


def _text(trial: Trial) -> str:
    return trial.reason.replace("|", "\\|")


def load_combinations(path: Path) -> list[Trial]:
    """Read the JSON that `write_combinations` wrote."""
    return [Trial(tuple(it["methods"]), it["outcome"], it["reason"]) for it in json.loads(path.read_text("utf-8"))]
