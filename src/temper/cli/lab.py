"""`temper lab`: procedural skills with known truth, and tiny bases that are made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Skills with known truth and tiny bases, made on the spot.",
    no_args_is_help=False,
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def list_all(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False
) -> None:
    """List the lab's skills and bases."""
    if context.invoked_subcommand is not None:
        return
    from temper.lab.bases import default_cache, describe_bases, describe_skills

    skills, bases = describe_skills(), describe_bases()
    if as_json:
        typer.echo(json.dumps({"skills": skills, "bases": bases}, indent=1, ensure_ascii=False))
        return
    width = max(len(skill["name"]) for skill in skills)
    typer.echo("skills (data: [lab/NAME]):")
    for skill in skills:
        shown = f"{skill['prompt']}{skill['completion']}".replace("\n", " | ")
        typer.echo(f"  {skill['name']:<{width}}  {skill['description']}  {shown}")
    typer.echo(f"\nbases (base: NAME), kept in {default_cache()}:")
    for base in bases:
        made = "made" if base["is_cached"] else "not made yet"
        typer.echo(f"  {base['name']:<{width}}  {base['description']}; {made}")
    typer.echo("\ntemper lab show NAME shows a skill's rows or a base; temper lab make NAME makes a base")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A skill (reverse) or a base (tiny).")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Rows of each split.")] = 5,
) -> None:
    """Show a skill with rows of both splits, or a base with what it knows."""
    from temper.core.errors import SettingError, nearest
    from temper.lab.bases import describe_bases, describe_skills

    plain = name.removeprefix("lab/").removeprefix("lab:")
    skills = {skill["name"]: skill for skill in describe_skills()}
    bases = {base["name"].removeprefix("lab:"): base for base in describe_bases()}
    if plain in bases:
        _show_base(bases[plain])
    elif plain in skills:
        _show_skill(skills[plain], rows)
    else:
        raise SettingError("name", name, "is no skill and no base of the lab", nearest(plain, [*skills, *bases]))


def _show_base(base: Mapping[str, Any]) -> None:
    typer.echo(f"{base['name']}: {base['description']}")
    typer.echo(f"  {base['family']}, {base['layers']} layers of width {base['width']}, {base['steps']} steps")
    typer.echo(f"  knows: {', '.join(base['knows'])}")
    reached = base["exact_match"]
    if reached is None:
        typer.echo("  not made yet")
    else:
        typer.echo("  exact match: " + ", ".join(f"{skill} {share:.2f}" for skill, share in reached.items()))


def _show_skill(skill: Mapping[str, Any], count: int) -> None:
    from itertools import islice

    from temper.pipeline.models import open_rows

    typer.echo(f"lab/{skill['name']}: {skill['description']}")
    if skill["lengths"] is not None:
        typer.echo(f"  levels {skill['lengths'][0]} to {skill['lengths'][1]}")
    typer.echo(f"  known by: {', '.join(skill['known_by']) or 'no base'}")
    for split in ("train", "test"):
        found = open_rows({"lab": {"skill": skill["name"], "num": count, "num_test": count}}, split)
        typer.echo(f"  {split}:")
        for row in islice(found, count):
            typer.echo(f"    {row.content['prompt']}{row.content['completion']}".replace("\n", "\n    "))


@app.command()
def make(name: Annotated[str, typer.Argument(help="A base: tiny.")]) -> None:
    """Make a base now, where it is not kept yet."""
    from temper.lab.bases import base_folder, open_base

    plain = name.removeprefix("lab:")
    model = open_base(plain)
    count = sum(parameter.numel() for parameter in model.module.parameters())
    typer.echo(f"lab:{plain}: {count:,} parameters, {base_folder(plain)}")
