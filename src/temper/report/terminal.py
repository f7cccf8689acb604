"""The table of gain and loss in the terminal: stages against suites, or a list where the terminal is narrow."""

from __future__ import annotations

import itertools
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from temper.report import format as fmt
from temper.report.read import RunRecord, SuiteResult, read_run
from temper.report.views import Cell, GainTable, gain_table, headline

MAX_STAGE, MIN_SUITE, MAX_SUITE = 24, 25, 32
"""characters of a column"""
_STYLES = {"better": "green", "worse": "bold red", "same": "dim"}


def print_table(run: Path | RunRecord, console: Console | None = None) -> None:
    """Print what each stage gained and lost against the base.

    Args:
        run: a run's folder, or its records.
        console: where to; the standard output by default. Its width decides between table and list.

    Raises:
        DataError: the folder holds no readable `run.json`.
    """
    record = read_run(run) if isinstance(run, Path) else run
    console = console or Console()
    table = gain_table(record)
    if not table.suites:
        console.print(Text("nothing is measured yet", style="dim"))
        return
    names = max(len(row.name) for row in table.rows)
    across = (console.width - min(names, MAX_STAGE) - 2) // (MIN_SUITE + 3)  # padding on both sides and a divider
    if across >= min(2, len(table.suites)):
        num_parts = -(-len(table.suites) // across)
        bounds = [part * len(table.suites) // num_parts for part in range(num_parts + 1)]
        for start, end in itertools.pairwise(bounds):
            console.print(_table(table, table.suites[start:end]))
    else:
        _print_list(table, console)
    console.print(_legend(table))
    sentence = headline(table)
    if sentence:
        console.print(Text(sentence, style="bold"))


def _table(table: GainTable, suites: tuple[SuiteResult, ...]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    shown.add_column(Text("stage"), overflow="fold", max_width=MAX_STAGE)
    for suite in suites:
        shown.add_column(
            _column_name(suite), justify="right", overflow="fold", min_width=MIN_SUITE, max_width=MAX_SUITE
        )
    for row in table.rows:
        name = Text(row.name, style="bold" if row.kind != "untuned" else "")
        if row.status != "done":
            name.append(f"\n{row.status}", style="yellow")
        shown.add_row(name, *(_cell_text(row.cells[suite.label]) for suite in suites))
    return shown


def _column_name(suite: SuiteResult) -> Text:
    scale = fmt.scale_of(suite.unit)
    unit = f", {scale}" if scale and scale != suite.metric else ""
    direction = "" if suite.higher_is_better else ", lower better"
    name = Text(f"{suite.label}\n")
    name.append(f"{suite.role}: {suite.metric}{unit}{direction}", style="dim")
    return name


def _cell_text(cell: Cell) -> Text:
    """Return value and change in a line, interval and lost examples in a second one."""
    if cell.suite is None:
        return Text(fmt.MISSING, style="dim")
    unit = cell.suite.unit
    text = Text(fmt.number(cell.suite.value, unit))
    change = cell.base
    if change is not None:
        text.append(
            f"  {fmt.number(change.difference, unit, signed=True)} {change.verdict}",
            style=_STYLES.get(change.verdict, ""),
        )
        bounds = fmt.interval(change.low, change.high, unit, signed=True)
        lost = f"{change.negative_flips:,} lost" if change.negative_flips else ""
        below = ", ".join(part for part in (bounds, lost) if part)
        text.append(f"\n{below}" if below else "", style="dim")
    return text


def _print_list(table: GainTable, console: Console) -> None:
    for row in table.rows:
        title = Text(row.name, style="bold")
        if row.status != "done":
            title.append(f" ({row.status})", style="yellow")
        console.print(title)
        for suite in table.suites:
            cell = row.cells[suite.label]
            if cell.suite is None:
                continue
            line = Text(f"  {suite.label} ")
            scale = fmt.scale_of(suite.unit)
            line.append(fmt.number(cell.suite.value, suite.unit) + (f" {scale}" if scale else ""))
            change = cell.base
            if change is not None:
                signed = fmt.number(change.difference, suite.unit, signed=True)
                line.append(f"  {signed} {change.verdict}", style=_STYLES.get(change.verdict, ""))
            console.print(line)


def _legend(table: GainTable) -> Text:
    if not any(cell.base for row in table.rows for cell in row.cells.values()):
        return Text("no stage is measured yet", style="dim")
    return Text(
        "Value, change against the base and its 95 % interval (paired bootstrap; shares in percentage points); "
        "lost: right before, wrong now.",
        style="dim",
    )
