"""`temper report` and `temper export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """What an export is."""

    model = "model"
    adapter = "adapter"


class Precision(StrEnum):
    """In which numbers."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="A run's folder: runs/<recipe>.")]


def add_to(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(export)


def report(run: RunFolder) -> None:
    """Show a run's table of gain and loss, and write its HTML page anew."""
    from temper.report import print_table, write_report

    print_table(run)
    typer.echo(f"report: {write_report(run)}")


def export(
    run: RunFolder,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A finished stage, or base.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write.")],
    form: Annotated[
        Form, typer.Option("--as", help="model: whole weights; adapter: a PEFT adapter of the base.")
    ] = Form.model,
    dtype: Annotated[
        Precision | None, typer.Option("--dtype", help="Number format; by default as the weights are.")
    ] = None,
) -> None:
    """Write a stage's model for other tools: a Hugging Face folder, or a PEFT adapter."""
    from temper.pipeline.result import Run
    from temper.stages.export import export as write

    shelf = Run(run).checked(stage)
    written = write(shelf, stage, to, form.value, None if dtype is None else dtype.value)
    typer.echo(f"{form.value} of {stage} with {written['parameters']:,} numbers: {written['to']}")
