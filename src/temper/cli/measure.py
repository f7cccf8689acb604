"""`temper measure`: any model on any suites."""

from __future__ import annotations

import json
from typing import Annotated

import typer

ModelSource = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's folder, a hub id, lab:NAME, or a run's folder.")
]
StageOfRun = Annotated[
    str | None, typer.Argument(metavar="STAGE", help="Of a run: the stage, or base; by default the last one.")
]


def add_to(app: typer.Typer) -> None:
    app.command()(measure)


def measure(
    model: ModelSource,
    suite: Annotated[list[str], typer.Option("--suite", "-s", help="lab/reverse, drift, a data file, or YAML: {...}.")],
    stage: StageOfRun = None,
    against: Annotated[str | None, typer.Option("--against", help="A model to compare with, named like MODEL.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Examples of each suite at most.")] = 200,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Worked examples of a further, few-shot arm.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the choice of examples, and of intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, scores and samples included, as JSON.")] = False,
) -> None:
    """Measure a model on suites, with 95 % intervals."""
    from temper.pipeline.document import read_value
    from temper.pipeline.measuring import evaluate
    from temper.pipeline.models import load_model
    from temper.report import format as fmt

    suites = [read_value(text) if text.lstrip().startswith("{") else text for text in suite]
    measured = evaluate(
        load_model(model, stage),
        suites,
        base=None if against is None else load_model(against),
        examples=examples,
        shots=shots,
        seed=seed,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps(measured, indent=1, ensure_ascii=False))
        return
    for arm, reports in (("", measured["suites"]), ("few-shot ", measured.get("few_shot", {}))):
        for label, report in reports.items():
            unit, scale = report["unit"], fmt.scale_of(report["unit"])
            line = f"{arm}{label}: {report['metric']} {fmt.number(report['value'], unit)}{' ' + scale if scale else ''}"
            line += f" ({fmt.interval(report['low'], report['high'], unit)}), {report['num_examples']} examples"
            change = report["changes"].get("base") if not arm else None
            if change is not None:
                bounds = fmt.interval(change["low"], change["high"], unit, signed=True)
                line += f"; {fmt.number(change['difference'], unit, signed=True)} ({bounds}) {change['verdict']}"
            typer.echo(line)
