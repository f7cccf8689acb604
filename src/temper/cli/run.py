"""`temper run` and `temper preview`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from temper.pipeline.result import Run

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings to change, stages by name or index: stages.adapt.train.lr=3e-4, seed=1.",
    ),
]
RUNS = Path("runs")


def add_to(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(preview)


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder under which the run gets its own.")] = RUNS,
    force: Annotated[
        list[str] | None, typer.Option("--force", metavar="STAGE", help="Do a finished stage again; may be repeated.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="dp=N,fsdp=N,tp=N",
            help="How the processes of torchrun divide the work: dp the batch alone, fsdp it and the model's numbers "
            "(by default all processes), tp each matrix.",
        ),
    ] = "",
) -> None:
    """Run a recipe: train, measure, report. What is finished is not done again; what was killed continues."""
    from temper.core.errors import GateError
    from temper.engine.distributed import World
    from temper.engine.layout import Layout
    from temper.pipeline.recipe import Recipe
    from temper.pipeline.result import Run
    from temper.pipeline.run import run as run_recipe

    command = ["temper", "run", str(recipe), *(overrides or [])]
    if runs != RUNS:
        command += ["--runs", str(runs)]
    if layout:
        command += ["--layout", layout]
    try:
        with World.join(Layout.parse(layout)) as world:
            result = run_recipe(
                recipe, overrides or [], runs=runs, force=force or [], until=until, command=command, world=world
            )
            if world.is_main:
                _show(result)
    except GateError:
        _show(Run(runs / Recipe.load(recipe, overrides or []).name))  # what was measured is the reason
        raise
    except KeyboardInterrupt as error:
        typer.echo(f"\nstopped; what is finished stays. To go on: {shlex.join(command)}", err=True)
        raise typer.Exit(130) from error


def _show(result: Run) -> None:
    from temper.report import print_table

    print_table(result.folder)
    typer.echo(f"stages: {result.folder}")
    typer.echo(f"report: {result.report}")


def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option("--examples", "-n", min=1, help="Examples of each source.")] = 3,
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder under which prepared data is kept.")] = RUNS,
) -> None:
    """Show what the training stages of a recipe learn from, every token coloured by its weight."""
    from rich.console import Console

    from temper.pipeline.preview import preview as show
    from temper.pipeline.recipe import Recipe

    show(Recipe.load(recipe, overrides or []), Console(), num_examples=examples, only=stage, runs=runs)
