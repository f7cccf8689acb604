"""`temper compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from temper.cli.run import RUNS, Overrides, RecipeFile


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=a,b,...",
            help="Values that a setting takes: train.tune=lora,full or stages.adapt.train.lr=1e-3,1e-2; `all` is every "
            "method that fits. Repeated, all combinations are compared. Instead of the recipe's `compare: vary`.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Runs of each setting. [3]")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="tokens=2M|steps=500|epochs=1", help="How long each training stage of a setting trains."),
    ] = None,
    lr_search: Annotated[
        int | None, typer.Option("--lr-search", min=1, help="Learning rates tried for each setting; 1: no search. [3]")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Runs at the same time. [1]")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder under which the comparison gets its own.")] = RUNS,
) -> None:
    """Run settings of a recipe under one budget: gain against loss, memory and time. What is done is not done again."""
    from temper.pipeline.compare import FILE
    from temper.pipeline.compare import compare as compare_settings
    from temper.pipeline.vary import read_vary
    from temper.report.comparison import PAGE, print_comparison, read_comparison

    options = {"--seeds": seeds, "--budget": budget, "--lr-search": lr_search, "--jobs": jobs}
    command = ["temper", "compare", str(recipe), *(overrides or [])]
    command += [word for text in vary or [] for word in ("--vary", text)]
    command += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    command += [] if runs == RUNS else ["--runs", str(runs)]
    try:
        folder = compare_settings(
            recipe,
            overrides or [],
            runs=runs,
            command=command,
            vary=read_vary(vary) if vary else None,
            seeds=seeds,
            budget=budget,
            lr_search=lr_search,
            jobs=jobs,
        )
    except KeyboardInterrupt as error:
        typer.echo(f"\nstopped; what is finished stays. To go on: {shlex.join(command)}", err=True)
        raise typer.Exit(130) from error
    print_comparison(read_comparison(folder))
    typer.echo(f"numbers: {folder / FILE}")
    typer.echo(f"page: {folder / PAGE}")
