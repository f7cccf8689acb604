"""`temper doctor`: what this machine has and lacks."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say what this machine has and lacks for training."""
    from temper.pipeline.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = {True: "ok", False: "! ", None: "  "}[finding.is_good]
        typer.echo(f"{mark} {finding.name:<{width}}  {finding.value}")
        if finding.hint:
            typer.echo(f"   {'':<{width}}  {finding.hint}")
