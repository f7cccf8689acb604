"""`temper plan`: what a run will cost, before anything trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from temper.cli.run import RUNS, Overrides, RecipeFile

UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_to(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Memory that there is: 16GiB; this machine's where not given.")
    ] = None,
    flops_per_second: Annotated[
        float | None, typer.Option("--flops-per-second", help="Speed of the machine; measured here where not given.")
    ] = None,
    world_size: Annotated[
        int | None, typer.Option("--world-size", min=1, help="Plan for so many processes that are not there.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="How they divide the work: dp=2,fsdp=8,tp=2; by default all are fsdp."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder under which runs lie, to see what is done.")] = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON, in bytes and seconds.")] = False,
) -> None:
    """Say what a recipe will cost before anything trains: steps, tokens, FLOPs, memory, time, and what cannot work."""
    from temper.core.errors import SettingError
    from temper.engine.forecast import Elsewhere
    from temper.engine.layout import Layout
    from temper.pipeline.plan import plan as make
    from temper.pipeline.recipe import Recipe
    from temper.report.forecast import print_plan

    if flops_per_second is not None and not 0 < flops_per_second < float("inf"):
        raise SettingError("--flops-per-second", flops_per_second, "is no speed", "write it as 2e12")
    if layout is not None and world_size is None:
        raise SettingError("--layout", layout, "divides the work of one process", "give --world-size too")
    made = make(
        Recipe.load(recipe, overrides or []),
        runs=runs,
        memory=None if memory is None else read_size(memory),
        flops_per_second=flops_per_second,
        place=None if world_size is None else Elsewhere(world_size, Layout.parse(layout or "")),
    )
    if as_json:
        typer.echo(json.dumps(made.written(), indent=1))
    else:
        print_plan(made.written())
    if not made.works:
        raise typer.Exit(1)


def read_size(text: str) -> int:
    """Read `16GiB` as bytes.

    Raises:
        SettingError: no size.
    """
    from temper.core.errors import SettingError

    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    size = 0 if found is None else int(float(found[1]) * UNITS.get(found[2].upper(), 0))
    if size == 0:
        raise SettingError("--memory", text, "is no amount of memory", "write it as 16GiB or 500MB")
    return size
