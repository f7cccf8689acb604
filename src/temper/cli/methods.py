"""`temper methods`: every method with its settings."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from temper.pipeline.catalogue import AxisPage, FieldPage, MethodPage


def add_to(app: typer.Typer) -> None:
    app.command()(methods)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="A method, an axis, or axis/method: shows its pages; with --probe also ONE+OTHER."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Try every pair of methods across axes (with NAME, only its pairs).")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            help="With --probe: the Markdown file of what combines; everything beside it as .json.",
            show_default="combinations.md",
        ),
    ] = None,
) -> None:
    """List every method with its axis, fields and source paper; or try which of them combine."""
    from temper.core.errors import SettingError, nearest

    if probe and as_json:
        reason = "is not printed by --probe, which writes it as a file"
        raise SettingError("--json", True, reason, "leave it out and read the .json beside the file of --to")
    if probe:
        _probe(name, Path("combinations.md") if to is None else to)
        return
    from temper.pipeline.catalogue import catalogue

    if to is not None:
        raise SettingError("--to", str(to), "is written by --probe alone", "add --probe, or redirect the output")
    axes = catalogue()
    if name is not None:
        pages = [page for axis in axes for page in axis.methods if name in (page.name, page.path)]
        named = [axis for axis in axes if axis.name == name]
        if not pages and not named:
            known = [axis.name for axis in axes] + [page.name for axis in axes for page in axis.methods]
            raise SettingError("name", name, "is no method and no axis", nearest(name, set(known)))
        if as_json:
            typer.echo(json.dumps([asdict(page) for page in pages or named[0].methods], indent=1, ensure_ascii=False))
        elif pages:
            typer.echo("\n\n".join(_page(page) for page in pages))
        else:
            typer.echo(_axis(named[0]))
    elif as_json:
        typer.echo(json.dumps([asdict(axis) for axis in axes], indent=1, ensure_ascii=False))
    else:
        typer.echo("\n\n".join(_axis(axis) for axis in axes))
        typer.echo("\ntemper methods NAME shows a method's settings")


def _probe(name: str | None, to: Path) -> None:
    from temper.pipeline.probe import probe, write_combinations

    trials = probe(name, lambda text: typer.echo(text, err=True))
    counts = Counter(trial.outcome for trial in trials if len(trial.methods) == 2)
    for trial in trials:
        if trial.outcome == "defect" or (trial.outcome == "untried" and len(trial.methods) == 1):
            typer.echo(f"{trial.outcome}: {' + '.join(trial.methods)}: {trial.reason}")
    files = write_combinations(trials, to)
    typer.echo(f"{counts.total()} pairs: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    typer.echo(f"written: {', '.join(map(str, files))}")


def _axis(axis: AxisPage) -> str:
    width = max((len(page.name) for page in axis.methods), default=0)
    lines = [f"  {page.name:<{width}}  {page.summary}{_cited(page)}" for page in axis.methods]
    return "\n".join([f"{axis.name}: {axis.question}", *lines])


def _cited(page: MethodPage) -> str:
    return f" [{page.source}]" if page.source else ""


def _page(page: MethodPage) -> str:
    width = max((len(field.name) for field in page.fields), default=0)
    lines = [f"{page.name} ({page.axis}, {page.module})", "", page.text, "", "settings:"]
    lines += [f"  {field.name:<{width}}  {_field(field)}" for field in page.fields] or ["  none"]
    if page.needs:
        lines += ["", "needs:", *(f"  {need}" for need in page.needs)]
    return "\n".join(lines)


def _field(field: FieldPage) -> str:
    default = "required" if field.is_required else f"default {_show(field.default)}"
    return "; ".join(part for part in (field.type, default, field.limits, field.description) if part)


def _show(value: Any) -> str:
    if isinstance(value, dict) and len(value) == 1:
        return str(next(iter(value)))
    return json.dumps(value, ensure_ascii=False)
