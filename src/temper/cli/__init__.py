"""The command `temper`.

Decisions:
- One file for each group of commands. Nothing heavy is imported before a command runs, so that help is instant.
- An error that a user can act on is one message on standard error. Exit code 2: bad input, nothing was done;
  1: a run that failed; 130: stopped from the keyboard. `--debug`, anywhere, shows the traceback.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from temper.cli import chat, compare, doctor, lab, measure, methods, plan, report, run
from temper.core.errors import GateError, StageError, TemperError, TrainingError

app = typer.Typer(
    name="temper",
    help="Train a language model in stages, and see after each what was gained and what was lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from temper.core.version import temper_version

        typer.echo(f"temper {temper_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere in the command.")] = False,
) -> None:
    pass


for _group in (run, compare, plan, methods, measure, chat, report, doctor):
    _group.add_to(app)
app.add_typer(lab.app, name="lab")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and leave with its exit code."""
    written = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging = "--debug" in written
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows `?`
    try:
        app(args=[text for text in written if text != "--debug"], prog_name="temper")
    except OSError as error:
        if is_debugging or error.filename is None:
            raise
        typer.echo(f"error: {error.filename}: {error.strerror}", err=True)
        sys.exit(2)
    except TemperError as error:
        if is_debugging:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1 if isinstance(error, StageError | GateError | TrainingError) else 2)
