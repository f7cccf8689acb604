"""The recipe as a picture: stages as boxes, an arrow from every model or data that a stage reads.

Decisions: a stage's rank is its longest way from the base, so arrows never point back; ranks run from left to right
where they fit on a page and from top to bottom where they do not (and always on a narrow screen); boxes of a rank
stand in the order of the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

from markupsafe import Markup

from temper.report.charts import fitted, text_width

GAP_ACROSS, GAP_ALONG = 18, 42
PAD = 12
LINE = 16
MAX_LINES = 8
MAX_RANKS_ACROSS = 5
_BOXES = {"wide": (196, 196), "tall": (520, 250), "narrow": (320, 196)}
"""width of a box: alone in its rank, and beside others"""
LANE = 12

Shape = Literal["wide", "tall", "narrow"]
"""left to right, top to bottom on a wide page, top to bottom on a narrow one"""
Point = tuple[float, float]


@dataclass(frozen=True)
class Node:
    """A stage, or the base."""

    name: str
    kind: str
    status: str
    lines: tuple[str, ...]
    """what it does, in short lines"""
    models: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    """stages whose rows it reads"""


@dataclass(frozen=True)
class _Box:
    node: Node
    lines: list[str]
    width: float
    x: float = 0.0
    y: float = 0.0

    @property
    def height(self) -> float:
        return 2 * PAD + LINE * (len(self.lines) + 1) + 2


def is_tall(nodes: Sequence[Node]) -> bool:
    """Return whether the recipe is too long for one row of ranks."""
    return 1 + max(ranks(nodes).values(), default=0) > MAX_RANKS_ACROSS


def ranks(nodes: Sequence[Node]) -> dict[str, int]:
    """Return each node's longest way from a node that reads nothing."""
    found: dict[str, int] = {}
    for node in nodes:
        reads = [found[name] for name in (*node.models, *node.data) if name in found]
        found[node.name] = 1 + max(reads) if reads else 0
    return found


def draw(nodes: Sequence[Node], shape: Shape) -> Markup:
    """Return the picture as SVG."""
    rank_of = ranks(nodes)
    downwards = shape != "wide"
    box_width = _BOXES[shape][len(set(rank_of.values())) < len(nodes)]
    columns: dict[int, list[_Box]] = {}
    for node in nodes:
        lines = [line for text in node.lines for line in wrapped(text, box_width - 2 * PAD, 11.5)]
        if len(lines) > MAX_LINES:
            lines = [*lines[: MAX_LINES - 1], "…"]
        columns.setdefault(rank_of[node.name], []).append(_Box(node, lines, box_width))
    boxes, width, height = _down(columns) if downwards else _across(columns)
    edge = (width if downwards else height) + 4
    arrows: list[str] = []
    num_detours = 0
    for box in boxes.values():
        for kind, names in (("model", box.node.models), ("data", box.node.data)):
            for source in (boxes[name] for name in dict.fromkeys(names) if name in boxes):
                start, end = _ends(source, box, downwards)
                if rank_of[box.node.name] - rank_of[source.node.name] > 1:
                    points = _detour(start, end, edge + LANE * num_detours, num_detours)
                    num_detours += 1
                else:
                    points = [start, end]
                arrows.append(_arrow(points, downwards, kind))
    if num_detours:
        extra = LANE * num_detours + 2
        width, height = (width + extra, height) if downwards else (width, height + extra)
    reads = "; ".join(
        f"{node.name} ({node.kind}) from {', '.join((*node.models, *node.data))}" for node in nodes if node.models
    )
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="width:{width:g}px;min-width:{0.72 * width:.0f}px" '
        f'aria-label="{escape("The recipe. " + reads, quote=True)}">'
        + "".join(arrows)
        + "".join(_draw_box(box) for box in boxes.values())
        + "</svg>"
    )


def _across(columns: Mapping[int, list[_Box]]) -> tuple[dict[str, _Box], float, float]:
    heights = {
        rank: sum(box.height for box in column) + GAP_ACROSS * (len(column) - 1) for rank, column in columns.items()
    }
    tallest = max(heights.values())
    boxes, step = {}, columns[0][0].width + GAP_ALONG
    for rank, column in columns.items():
        y = 2 + (tallest - heights[rank]) / 2
        for box in column:
            boxes[box.node.name] = replace(box, x=2 + rank * step, y=y)
            y += box.height + GAP_ACROSS
    return boxes, 4 + len(columns) * step - GAP_ALONG, tallest + 4


def _down(columns: Mapping[int, list[_Box]]) -> tuple[dict[str, _Box], float, float]:
    step = columns[0][0].width + GAP_ACROSS
    full = max(len(column) for column in columns.values()) * step - GAP_ACROSS
    boxes, y = {}, 2.0
    for _, column in sorted(columns.items()):
        x = 2 + (full - len(column) * step + GAP_ACROSS) / 2
        for box in column:
            boxes[box.node.name] = replace(box, x=x, y=y)
            x += step
        y += max(box.height for box in column) + GAP_ALONG
    return boxes, full + 4, y - GAP_ALONG + 2


def _ends(source: _Box, target: _Box, downwards: bool) -> tuple[Point, Point]:
    """Return where an arrow leaves and where it arrives, as (along the ranks, across them)."""
    if downwards:
        return (source.y + source.height, source.x + source.width / 2), (target.y, target.x + target.width / 2)
    return (source.x + source.width, source.y + source.height / 2), (target.x, target.y + target.height / 2)


def _detour(start: Point, end: Point, lane: float, index: int) -> list[Point]:
    """Lead an arrow that passes over a rank around all boxes, along a lane of its own."""
    out, back = start[0] + 10 + 4 * (index % 4), end[0] - 14 - 4 * (index % 4)
    return [start, (out, start[1]), (out, lane), (back, lane), (back, end[1]), end]


def _arrow(points: Sequence[Point], downwards: bool, kind: str) -> str:
    tip = points[-1]
    *before, last = [*points[:-1], (tip[0] - 6, tip[1])]
    if len(before) == 1:
        (a0, c0), (a1, c1) = before[0], last
        bend = max(14.0, (a1 - a0) / 2)
        path = f"M{_at(a0, c0, downwards)}C{_at(a0 + bend, c0, downwards)} {_at(a1 - bend, c1, downwards)} "
        path += _at(a1, c1, downwards)
    else:
        path = f"M{_at(*before[0], downwards)}"
        for here, corner, there in zip(before, before[1:], [*before[2:], last], strict=False):
            into, out = _towards(corner, here), _towards(corner, there)
            path += f"L{_at(*into, downwards)}Q{_at(*corner, downwards)} {_at(*out, downwards)}"
        path += f"L{_at(*last, downwards)}"
    corners = [(tip[0] - 7, tip[1] - 4), tip, (tip[0] - 7, tip[1] + 4)]
    head = "M" + "L".join(_at(*corner, downwards) for corner in corners) + "z"
    return f'<path class="edge {kind}" d="{path}"/><path class="head {kind}" d="{head}"/>'


def _at(along: float, across: float, downwards: bool) -> str:
    return f"{across:.1f} {along:.1f}" if downwards else f"{along:.1f} {across:.1f}"


def _towards(corner: Point, other: Point) -> Point:
    """Return the point a little way from a corner: where its rounding begins."""
    length = math.hypot(other[0] - corner[0], other[1] - corner[1])
    part = min(7.0, length / 2) / length if length else 0.0
    return corner[0] + part * (other[0] - corner[0]), corner[1] + part * (other[1] - corner[1])


def _draw_box(box: _Box) -> str:
    node, x, y = box.node, box.x, box.y
    kind = node.kind if node.status == "done" else node.status
    room = box.width - 2 * PAD - 1.1 * text_width(kind, 11) - 12
    whole = "\n".join((node.name, *node.lines))
    parts = [
        f"<title>{escape(whole)}</title>",
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:g}" height="{box.height:.1f}" rx="3"/>',
        f'<text class="name" x="{x + PAD:.1f}" y="{y + PAD + 11:.1f}">{escape(fitted(node.name, room, 14))}</text>',
        f'<text class="kind" x="{x + box.width - PAD:.1f}" y="{y + PAD + 11:.1f}" text-anchor="end">'
        f"{escape(kind)}</text>",
    ]
    for index, line in enumerate(box.lines):
        parts.append(f'<text x="{x + PAD:.1f}" y="{y + PAD + 13 + LINE * (index + 1):.1f}">{escape(line)}</text>')
    look = "node " + ("base" if node.kind == "base" else node.status.replace(" ", "-"))
    return f'<g class="{look}">{"".join(parts)}</g>'


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Return a text as lines that fit; a word longer than a line is cut in its middle."""
    lines: list[str] = []
    for word in text.split():
        word = fitted(word, width, size)
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
