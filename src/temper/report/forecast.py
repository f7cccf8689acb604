"""A plan in the terminal: a table of stages, where the memory goes, and what cannot work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from temper.report import format as fmt

COLUMNS = ("stage", "does", "reads", "steps", "tokens", "FLOPs", "memory", "time")
CAUTION = "Time is an estimate; on a CPU memory is mostly within a tenth of what is predicted."


def print_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a plan, given as plain values."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if place < 3 else "right", overflow="fold")
    stages: Sequence[Mapping[str, Any]] = plan["stages"]
    for stage in stages:
        table.add_row(*_row(stage))
    if len(stages) > 1:
        total = plan["total"]
        table.add_section()
        table.add_row(
            "to do", "", "", fmt.count(total["steps"]), fmt.count(total["tokens"]), fmt.flops(total["flops"]), "",
            fmt.duration(total["seconds"]),
        )  # fmt: skip
    console.print(table)
    for stage in stages:
        _print_details(stage, console)
    has = f"{fmt.size(plan['limit_bytes'])} of memory on {plan['device']}" if plan["limit_bytes"] else plan["device"]
    console.print(
        Text(
            f"{plan['parameters']:,} parameters; {has}. {CAUTION}",
            style="dim",
        )
    )


def _row(stage: Mapping[str, Any]) -> list[str]:
    if stage["is_done"]:
        return [stage["name"], f"{stage['kind']} (done)", ", ".join(stage["reads"]), *[fmt.MISSING] * 5]
    about = "about " if stage["tokens_within"] else ""
    return [
        stage["name"],
        stage["kind"],
        ", ".join(stage["reads"]),
        about + fmt.count(stage["steps"]),
        about + fmt.count(stage["tokens"]),
        fmt.flops(stage["flops"]),
        fmt.size(stage["memory_bytes"]),
        fmt.duration(stage["seconds"]),
    ]


def _print_details(stage: Mapping[str, Any], console: Console) -> None:
    if stage["memory"]:
        parts = sorted(stage["memory"].items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {fmt.size(size)}" for name, size in parts)
        console.print(Text(f"{stage['name']}: memory: {listed}"))
    if stage["tokens_within"]:
        console.print(Text(f"{stage['name']}: tokens within {fmt.count(stage['tokens_within'])} (95 %), from a sample"))
    for note in stage["notes"]:
        console.print(Text(f"{stage['name']}: {note}"))
    if stage["problem"]:
        console.print(Text(f"{stage['name']}: cannot work: {stage['problem']}", style="bold red"))
        if stage["fixes"]:
            console.print(Text(f"{stage['name']}: it fits with {'; or with '.join(stage['fixes'])}"))
