"""Run one study, and write the page of all of them."""

from __future__ import annotations

import importlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from effects.bench import Bench
from effects.study import Study, result
from temper.lab.bases import default_cache
from temper.pipeline.machine import versions

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"


def studies() -> list[str]:
    """Return every study by axis and method: `tune/lisa`."""
    return sorted(f"{file.parent.name}/{file.stem}" for file in HERE.glob("*/*.py") if file.stem != "__init__")


def study_named(name: str) -> Study:
    """Return a study by axis and method."""
    study: Study = importlib.import_module(f"effects.{name.replace('/', '.')}").STUDY
    return study


def words(name: str) -> dict[str, str]:
    """Return what a study says in words, as its file has it now."""
    study = study_named(name)
    return {"claim": study.claim, "finding": study.finding}


def make_base(name: str, seed: int) -> None:
    """Make the base of a seed, where it is not kept yet."""
    Bench(seed, default_cache(), base_seed=seed).base(name)


def run(name: str, seeds: int, cache: Path) -> dict[str, Any]:
    """Run one study for all seeds."""
    study = study_named(name)
    began = time.process_time()  # of one core: machines are shared
    arms: dict[str, list[float]] = {}
    for seed in range(seeds):
        for arm, value in study.measure(Bench(seed, cache, base_seed=seed)).items():
            arms.setdefault(arm, []).append(value)
    made_with = {package: versions()[package] for package in ("torch", "transformers")}
    return {**result(name, study, arms, time.process_time() - began), "made_with": made_with}


def render(results: Sequence[dict[str, Any]]) -> str:
    """Return docs/effects.md."""
    return "\n".join(_render(results)) + "\n"


def _render(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    contrasts = [contrast for found in results for contrast in found["contrasts"]]
    effects = [contrast for contrast in contrasts if contrast["expected"] != "none"]
    controls = [contrast for contrast in contrasts if contrast["expected"] == "none"]
    count = {verdict: sum(each["verdict"] == verdict for each in effects) for verdict in ("shown", "not shown")}
    yield "# Do the methods do here what their papers say?"
    yield ""
    yield (
        "`make effects` runs every study of `tests/effects/` and writes this page. Models of the lab have 0.4 million "
        "parameters, so an effect that needs size, or real text, need not show; such a result is kept like any other. "
        "Each number is the mean over seeds of one arm less another, with a 95 % interval (Student's t over seeds, "
        "paired); every seed has a base of its own, other rows and another order. "
        "*Shown*: the interval lies on the side that the claim says. *Not shown*: it holds 0. *Contradicted*: "
        "it lies on the other side. In a negative control nothing is expected, and it is shown where its interval "
        "holds 0: about one in twenty does not by chance alone."
    )
    yield ""
    yield (
        f"{len(results)} studies, {sum(found['seconds'] for found in results) / 60:.0f} minutes of one core. Of "
        f"{len(effects)} effects {count['shown']} are shown, {count['not shown']} are not, "
        f"{len(effects) - sum(count.values())} are contradicted; of {len(controls)} controls "
        f"{sum(each['verdict'] == 'shown' for each in controls)} hold. Made with {_made_with(results)}."
    )
    for found in results:
        yield ""
        yield f"## {found['method']}"
        yield ""
        yield f"{found['claim']} Unit: {found['unit']}."
        yield ""
        yield "| contrast | arms | expected | difference | 95 % interval | verdict |"
        yield "|---|---|---|---|---|---|"
        for each in found["contrasts"]:
            arms = f"{each['of']} - {each['against']}"
            expected = "none (control)" if each["expected"] == "none" else each["expected"]
            interval = f"{each['low']:.3g} to {each['high']:.3g}"
            yield f"| {each['name']} | {arms} | {expected} | {each['mean']:.3g} | {interval} | {each['verdict']} |"
        yield ""
        means = {arm: sum(values) / len(values) for arm, values in found["arms"].items()}
        yield "Means: " + ", ".join(f"{arm} {mean:.3g}" for arm, mean in means.items()) + "."
        if found["finding"]:
            yield ""
            yield found["finding"]


def _made_with(results: Sequence[dict[str, Any]]) -> str:
    """Name the versions, and how many studies each made where they differ."""
    made = Counter(" and ".join(map(" ".join, found["made_with"].items())) for found in results)
    return next(iter(made)) if len(made) == 1 else "; ".join(f"{with_} ({count})" for with_, count in made.items())


def kept(docs: Path = DOCS) -> list[dict[str, Any]]:
    """Return the results that lie in the docs, by axis and method."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((docs / "effects").glob("*/*.json"))]


def write(found: dict[str, Any], docs: Path = DOCS) -> None:
    """Keep a study's result."""
    file = docs / "effects" / f"{found['method']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_page(docs: Path = DOCS) -> None:
    """Write docs/effects.md anew."""
    (docs / "effects.md").write_text(render(kept(docs)), encoding="utf-8")
