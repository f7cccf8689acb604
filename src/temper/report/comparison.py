"""A comparison as a reader sees it: a table in the terminal, a page, a Markdown file, and pictures beside it.

Settings are ordered by their gain, and carry that order's number wherever they are named: in the table, in the
pictures, in the file.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from temper.core.errors import DataError
from temper.report import format as fmt
from temper.report.page import environment
from temper.report.scatter import Axis, Extent, Point, scatter

MIB = 2**20
PAGE, PAPER, DATA = "compare.html", "compare.md", "compare.json"
PICTURES = {"loss": "gain-loss.svg", "memory": "gain-memory.svg", "time": "gain-time.svg"}
FRONT_MARK = "●"
MAX_NAME, MIN_COLUMNS = 28, 5
"""in the terminal: characters of a setting's name in a line, and columns that are always shown"""
STYLE = """<style>
svg { --ink: #1d1f21; --muted: #5b6066; --rule: #dcdcd5; --line: #1f5f95; --pale: #a9c1d6; --paper: #fcfcfa;
  background: var(--paper); font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #e3e4e1; --muted: #a3a8ae; --rule: #33373c; --line: #7fb2e0;
  --pale: #3f5a73; --paper: #16181b; } }
.chart text { font-size: 11px; fill: var(--muted); }
.grid, .axis { fill: none; stroke: var(--rule); } .axis { stroke: var(--muted); }
"""


@dataclass(frozen=True)
class Number:
    """A mean over seeds with its interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Row:
    """A setting."""

    number: int
    label: str
    problem: str
    lr: Sequence[float]
    is_at_edge: bool
    """the best rate was the least or the greatest that was tried"""
    num_failed: int
    num_runs: int
    means: Mapping[str, Number | None]
    front: frozenset[str]
    warnings: frozenset[str]
    """what its runs said"""

    @property
    def rate(self) -> str:
        """The learning rates of its training stages."""
        return ", ".join(f"{rate:.2g}" for rate in self.lr) + ("*" if self.is_at_edge else "") or fmt.MISSING


@dataclass(frozen=True)
class View:
    """A comparison, ready to be shown."""

    record: Mapping[str, Any]

    @cached_property
    def rows(self) -> list[Row]:
        """The settings that ran, the greatest gain first, then those that could not."""
        ordered = sorted(self.record["settings"], key=_by_gain)
        return [_row(number, own) for number, own in enumerate(ordered, 1)]

    @property
    def compared(self) -> list[Row]:
        """The settings that ran."""
        return [row for row in self.rows if row.means["gain"] is not None]

    @property
    def refused(self) -> list[Row]:
        """The settings that could not run."""
        return [row for row in self.rows if row.means["gain"] is None]

    def role(self, name: str) -> Mapping[str, Any]:
        """Return unit, metric and suites of what is to be gained, or kept."""
        role: Mapping[str, Any] = self.record["roles"].get(name, {"unit": None, "metric": None, "suites": []})
        return role

    @property
    def headline(self) -> str:
        """What was compared, in a sentence."""
        plan = self.record["compare"]
        lengths = (plan["budget"] or {}).items()
        length = next((f"{value:,.9g} {name}" for name, value in lengths if value), "the recipe's own length")
        search = plan["lr_search"]["num"]
        rates = f", after a search of {search} learning rates for each" if search > 1 else ""
        return (
            f"{fmt.plural(len(self.rows), 'setting')}, {length} each, {fmt.plural(plan['seeds'], 'seed')}{rates}. "
            f"Gain: mean change of {fmt.words(self.role('gain')['suites'])} against the base"
            + (f"; loss: mean fall of {fmt.words(self.role('keep')['suites'])}" if self.role("keep")["suites"] else "")
            + "."
        )

    @property
    def notes(self) -> list[str]:
        """What a reader has to know of the numbers."""
        ways = [
            f"{fmt.plural(way['jobs'], 'run')} at a time, each with {fmt.plural(way['threads'], 'thread')} on "
            f"{way['processor']}"
            for way in self.record["ways"]
        ]
        how = f"; {ways[0]}" if len(ways) == 1 else f", and does not compare: {'; '.join(ways)}" if ways else ""
        notes = [
            "± is half of the 95 % interval of the mean over seeds (Student's t); how sure a suite is for the "
            "examples that it holds is in each run's own report.",
            "Memory is the most that a run held above the loaded model; what the "
            "libraries take for any first step is in it. "
            f"Time is that of attaching and training, not of measuring{how}.",
            f"{FRONT_MARK} nothing else has more gain at less loss (L), memory (M) or time (T), by the means alone.",
        ]
        if any(row.is_at_edge for row in self.rows):
            notes.append("* the best learning rate was the least or the greatest tried: a wider search may find more.")
        others = [label for name in ("gain", "keep") for label in self.role(name).get("others", [])]
        if others:
            notes.append(f"In another unit, and so in no mean: {fmt.words(others)}; see {DATA}.")
        return [*notes, *self._warnings()]

    def _warnings(self) -> Iterator[str]:
        """Yield what the runs of some settings said, and those of others did not."""
        for warning in dict.fromkeys(sorted(one for row in self.compared for one in row.warnings)):
            said = [str(row.number) for row in self.compared if warning in row.warnings]
            if len(said) < len(self.compared):
                yield f"{fmt.words(said)}: {warning}"

    def scale(self, role: str) -> tuple[float, str]:
        """Return the factor and the name of a role's unit."""
        unit = self.role(role)["unit"]
        return (100.0, "points") if unit == "share" else (1.0, unit or "")

    def points(self, price: str) -> tuple[list[Point], Axis]:
        """Return the settings as points of gain over a price: `loss`, `memory` or `time`."""
        factor, unit = self.scale("keep")
        source, size, axis = {
            "loss": ("loss", factor, Axis(f"loss, {unit} (left is better)")),
            "memory": ("memory_bytes", 1 / MIB, Axis("memory above the loaded model, MiB", may_be_log=True)),
            "time": ("seconds", 1.0, Axis("time, seconds", may_be_log=True)),
        }[price]
        made = []
        for row in self.compared:
            x, y = row.means[source], row.means["gain"]
            if x is not None and y is not None:
                made.append(
                    Point(
                        row.label, row.number, _extent(x, size), _extent(y, self.scale("gain")[0]), price in row.front
                    )
                )
        return made, axis

    def picture(self, price: str, *, is_wide: bool) -> Markup:
        """Return gain over a price as SVG."""
        points, axis = self.points(price)
        gain = Axis(f"gain, {self.scale('gain')[1]}")
        return scatter(f"Gain against {price}", points, axis, gain, is_wide=is_wide)

    @property
    def columns(self) -> list[str]:
        """The names of the table's columns."""
        gain, keep = self.scale("gain")[1], self.scale("keep")[1]
        return [
            "", "setting", "front", f"gain, {gain}", f"loss, {keep}", "memory, MiB", "time, s", "learning rate",
            "worst loss", "numbers trained", "on disk",
        ]  # fmt: skip

    def cells(self, row: Row) -> list[str]:
        """Return a setting's row of the table."""
        gain, keep = self.scale("gain")[0], self.scale("keep")[0]
        letters = "".join(name[0].upper() for name in PICTURES if name in row.front)
        label = row.label + (f" ({row.num_failed} of {row.num_runs} failed)" if row.num_failed else "")
        trained, size = row.means["trained"], row.means["delta_bytes"]
        return [
            str(row.number),
            label,
            f"{FRONT_MARK} {letters}" if letters else "",
            _plus(row.means["gain"], gain, 1 if gain == 100 else 3),
            _plus(row.means["loss"], keep, 1 if keep == 100 else 3),
            _plus(row.means["memory_bytes"], 1 / MIB, 1),
            _plus(row.means["seconds"], 1.0, 1),
            row.rate,
            _plus(row.means["worst"], keep, 1 if keep == 100 else 3),
            fmt.count(None if trained is None else trained.value),
            fmt.size(None if size is None else size.value),
        ]


def _by_gain(own: Mapping[str, Any]) -> float:
    gain = own["mean"]["gain"]
    return math.inf if gain is None else -float(gain["value"])


def _row(number: int, own: Mapping[str, Any]) -> Row:
    means = {
        name: None if mean is None else Number(mean["value"], mean["low"], mean["high"])
        for name, mean in own["mean"].items()
    }
    return Row(
        number,
        own["label"],
        own["problem"],
        own["lr"],
        own["is_at_edge"],
        own["num_failed"],
        len(own["runs"]),
        means,
        frozenset(own["front"]),
        frozenset(warning for run in own["runs"] for warning in run.get("warnings", ())),
    )


def _extent(number: Number, factor: float) -> Extent:
    low, high = (None if bound is None else factor * bound for bound in (number.low, number.high))
    return Extent(factor * number.value, low, high)


def _plus(number: Number | None, factor: float, digits: int) -> str:
    """Return `94.2 ± 0.6`."""
    if number is None:
        return fmt.MISSING
    text = f"{factor * number.value:,.{digits}f}"
    text = text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "\u2212")
    return text if number.half is None else f"{text} ± {factor * number.half:,.{digits}f}"


def print_comparison(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, with as many of its columns as the console is wide."""
    view, console = View(record), console or Console()
    lines = [view.cells(row) for row in view.compared]
    widths = [max(map(len, cells)) + 3 for cells in zip(view.columns, *lines, strict=True)]
    widths[1] = min(widths[1], MAX_NAME + 3)
    num_columns = max(MIN_COLUMNS, sum(total <= console.width for total in itertools.accumulate(widths)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, name in enumerate(view.columns[:num_columns]):
        is_text = 0 < place < 3
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=place != 1)
    for row, cells in zip(view.compared, lines, strict=True):
        table.add_row(*cells[:num_columns], style="bold" if row.front else "")
    if view.compared:
        console.print(table)
    for row in view.refused:
        console.print(Text(f"{row.label}: cannot: {row.problem}", style="yellow"))
    for note in view.notes:
        console.print(Text(note, style="dim"))


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read what a comparison left.

    Raises:
        DataError: the folder holds no comparison.
    """
    try:
        record: dict[str, Any] = json.loads((folder / DATA).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(folder / DATA, None, "is not there", "give the folder of a comparison") from error
    return record


def write_comparison(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the page, the Markdown file and the pictures into a comparison's folder."""
    view = View(record)
    html = environment().get_template("comparison.html.j2").render(view=view, record=record, prices=list(PICTURES))
    _write(folder / PAGE, html)
    _write(folder / PAPER, markdown(view))
    for price, name in PICTURES.items():
        if view.points(price)[0]:
            _write(folder / name, standalone(view.picture(price, is_wide=True)))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def standalone(svg: Markup) -> str:
    """Return a picture as a file of its own, light or dark as its reader prefers."""
    style = STYLE + (Path(__file__).parent / "comparison.css").read_text(encoding="utf-8") + "</style>"
    opened = str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    end = opened.index(">") + 1
    return f"{opened[:end]}{style}{opened[end:]}\n"


def markdown(view: View) -> str:
    """Return the table and its notes as Markdown."""
    lines = [f"<!-- made by `{view.record['command']}` -->", "", view.headline, ""]
    align = ["---" if 0 < place < 3 else "--:" for place in range(len(view.columns))]
    lines += [_line(view.columns), _line(align)]
    lines += [_line(view.cells(row)) for row in view.compared]
    lines.append("")
    lines += [f"- cannot: `{row.label}`: {row.problem}" for row in view.refused]
    lines += [""] if view.refused else []
    lines += [f"{note}  " for note in view.notes]
    lines.append("")
    for price, name in PICTURES.items():
        if view.points(price)[0]:
            lines += [f"![Gain against {price}, with the front]({name})", ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
