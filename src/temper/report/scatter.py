"""Points with their intervals and their names, as SVG text: which setting reaches how much at what price.

Decisions:
- A name stands as near to its point as it can without covering another name, a point or the frame; where it has to
  stand apart, a line leads to it. Places are tried in a fixed order, so that the same numbers give the same picture.
- A narrow picture, for a phone, shows each point's number in the table instead of its name.
- The scale follows the points; an interval far wider than they lie apart runs out of the frame.
- The front, which no other point beats in both numbers, is filled and joined by steps: between two of its points
  nothing is promised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from temper.report.charts import Scale, fit_scale, text_width, tick_text

WIDE, NARROW = (760, 440), (340, 340)
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
FONT = 11.0
BOLDER = 1.12
"""how much wider a name may be than a plain text of its letters"""
RADIUS = 3.6
LOG_RATIO = 20.0
"""a scale is logarithmic when its values are positive and span more than this"""
Box = tuple[float, float, float, float]
"""left, top, right, bottom"""


@dataclass(frozen=True)
class Extent:
    """A number and the ends of its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A setting."""

    name: str
    number: int
    """its place in the table"""
    x: Extent
    y: Extent
    is_front: bool


@dataclass(frozen=True)
class Axis:
    """What a direction shows."""

    name: str
    may_be_log: bool = False


def scatter(title: str, points: Sequence[Point], x: Axis, y: Axis, *, is_wide: bool) -> Markup:
    """Return points as SVG; a short note where there is none.

    Args:
        title: names the picture for those who cannot see it.
        points: less is better on x, more on y.
        is_wide: with names, for a screen; else with numbers, for a phone.
    """
    if not points:
        return Markup('<p class="empty">nothing to draw</p>')
    width, height = WIDE if is_wide else NARROW
    frame = (LEFT, TOP, width - RIGHT, height - BOTTOM)
    across = _scale_of([point.x for point in points], frame[0], frame[2], x.may_be_log)
    up = _scale_of([point.y for point in points], frame[3], frame[1], y.may_be_log)
    parts = [_axes(across, up, x, y, frame)]
    front = sorted((point for point in points if point.is_front), key=lambda point: point.x.value)
    parts.append(_steps([(across(point.x.value), up(point.y.value)) for point in front]))
    places = [(across(point.x.value), up(point.y.value)) for point in points]
    parts += [_cross(point, across, up, frame) for point in points]
    for point, (at_x, at_y) in zip(points, places, strict=True):
        look = "point front" if point.is_front else "point"
        parts.append(f'<circle class="{look}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="{RADIUS}"/>')
    order = sorted(range(len(points)), key=lambda index: not points[index].is_front)
    texts = [points[index].name if is_wide else str(points[index].number) for index in order]
    for index, text, box in zip(
        order, texts, place_names(texts, [places[i] for i in order], places, frame), strict=True
    ):
        parts.append(_name(text, points[index], places[index], box))
    said = "; ".join(f"{point.name} {point.y.value:.3g} at {point.x.value + 0.0:.3g}" for point in front)
    label = escape(f"{title}: {len(points)} settings. On the front: {said}.", quote=True)
    look = "wide" if is_wide else "narrow"
    return Markup(
        f'<svg class="chart scatter {look}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def place_names(
    texts: Sequence[str], own: Sequence[tuple[float, float]], points: Sequence[tuple[float, float]], frame: Box
) -> list[Box]:
    """Return a box for each name that covers as little as can be.

    Args:
        texts: the names, those first that are to stand nearest.
        own: the point of each.
        points: all points.
        frame: the boxes stay inside.
    """
    obstacles: list[Box] = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    placed: list[Box] = []
    for text, at in zip(texts, own, strict=True):
        size = BOLDER * text_width(text, FONT) + 2, FONT + 1

        def cost(found: tuple[float, Box]) -> float:
            return found[0] + _covered(found[1], obstacles, placed)

        best = min(_candidates(at, size, frame), key=cost)
        if any(_overlap(best[1], other) for other in placed):
            best = min(_everywhere(at, size, frame), key=cost)
        placed.append(best[1])
    return placed


def _candidates(at: tuple[float, float], size: tuple[float, float], frame: Box) -> Iterator[tuple[float, Box]]:
    """Yield boxes around a point, each with its distance; the right-hand side is the most legible."""
    x, y = at
    width, height = size
    for ring in range(24):
        distance = RADIUS + 2 + 7 * ring
        for turn in range(8 if ring == 0 else 16):
            angle = turn * 2 * math.pi / (8 if ring == 0 else 16)
            centre_x = x + math.cos(angle) * (distance + width / 2)
            centre_y = y + math.sin(angle) * (distance + height / 2)
            box = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            if box[0] >= frame[0] + 2 and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3] - 2:
                yield distance + turn / 100, box
    # Somewhere it has to be: at the frame's nearest edge.
    left, top = min(max(x, frame[0] + 2), frame[2] - width), min(max(y, frame[1]), frame[3] - height)
    yield 1e4, (left, top, left + width, top + height)


def _everywhere(at: tuple[float, float], size: tuple[float, float], frame: Box) -> Iterator[tuple[float, Box]]:
    """Yield boxes all over the frame, each with its distance from a point."""
    width, height = size
    across, down = int((frame[2] - frame[0] - width) / 8), int((frame[3] - frame[1] - height) / 4)
    for row in range(down + 1):
        for column in range(across + 1):
            left, top = frame[0] + 8 * column, frame[1] + 4 * row
            box = (left, top, left + width, top + height)
            yield math.dist(at, (left + width / 2, top + height / 2)), box


def _covered(box: Box, obstacles: Sequence[Box], placed: Sequence[Box]) -> float:
    """Return how bad it is what a box covers: names more than points."""
    return sum(1e3 for other in placed if _overlap(box, other)) + sum(80 for other in obstacles if _overlap(box, other))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scale_of(extents: Sequence[Extent], start: float, end: float, may_be_log: bool) -> Scale:
    """Return a scale with room for the points, and for intervals up to half as wide as the points lie apart."""
    values = [extent.value for extent in extents]
    low, high = min(values), max(values)
    is_log = may_be_log and low > 0 and high / low > LOG_RATIO
    room = 0.0 if is_log else 0.5 * (high - low)
    ends = [bound for extent in extents for bound in (extent.low, extent.high) if bound is not None]
    near = [bound for bound in ends if low - room <= bound <= high + room]
    return fit_scale([*values, *near], start, end, is_log=is_log)


def _axes(across: Scale, up: Scale, x: Axis, y: Axis, frame: Box) -> str:
    parts = []
    for ticks, scale, is_x in ((across.ticks(5), across, True), (up.ticks(5), up, False)):
        step = ticks[1] - ticks[0] if len(ticks) > 1 else scale.high - scale.low
        for tick in ticks:
            at, text = scale(tick), tick_text(tick, tick if scale.is_log else step)
            if is_x:
                parts.append(f'<path class="grid" d="M{at:.1f} {frame[1]}V{frame[3]}"/>')
                parts.append(f'<text x="{at:.1f}" y="{frame[3] + 14}" text-anchor="middle">{text}</text>')
            else:
                parts.append(f'<path class="grid" d="M{frame[0]} {at:.1f}H{frame[2]}"/>')
                parts.append(f'<text x="{frame[0] - 5}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<path class="axis" d="M{frame[0]} {frame[1]}V{frame[3]}H{frame[2]}"/>')
    suffix = ", log scale" if across.is_log else ""
    parts.append(
        f'<text class="axis-name" x="{frame[2]}" y="{frame[3] + 30}" text-anchor="end">{escape(x.name)}{suffix}</text>'
    )
    middle = (frame[1] + frame[3]) / 2
    parts.append(
        f'<text class="axis-name" x="10" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 10 {middle:.1f})">'
        f"{escape(y.name)}</text>"
    )
    return "".join(parts)


def _steps(front: Sequence[tuple[float, float]]) -> str:
    if len(front) < 2:
        return ""
    (first_x, first_y), *rest = front
    path = f"M{first_x:.1f} {first_y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest)
    return f'<path class="front-line" d="{path}"/>'


def _cross(point: Point, across: Scale, up: Scale, frame: Box) -> str:
    """Draw both intervals, as far as they lie in the frame."""
    at_x, at_y = across(point.x.value), up(point.y.value)
    parts = []
    if point.x.low is not None and point.x.high is not None:
        start, end = (_inside(across, bound, frame[0], frame[2]) for bound in (point.x.low, point.x.high))
        parts.append(f"M{start:.1f} {at_y:.1f}H{end:.1f}")
    if point.y.low is not None and point.y.high is not None:
        start, end = (_inside(up, bound, frame[1], frame[3]) for bound in (point.y.low, point.y.high))
        parts.append(f"M{at_x:.1f} {start:.1f}V{end:.1f}")
    look = "cross front" if point.is_front else "cross"
    return f'<path class="{look}" d="{"".join(parts)}"/>' if parts else ""


def _inside(scale: Scale, bound: float, low: float, high: float) -> float:
    if scale.is_log and bound <= 0:
        return scale.start
    return min(max(scale(bound), low), high)


def _name(text: str, point: Point, at: tuple[float, float], box: Box) -> str:
    nearest = min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3])
    leader = ""
    if math.dist(at, nearest) > RADIUS + 8:
        leader = f'<path class="leader" d="M{at[0]:.1f} {at[1]:.1f}L{nearest[0]:.1f} {nearest[1]:.1f}"/>'
    look = "name front" if point.is_front else "name"
    # Held where it is nearest to its point: a font that is wider than thought then runs away from it.
    anchor, x = "middle", (box[0] + box[2]) / 2
    if at[0] < box[0]:
        anchor, x = "start", box[0]
    elif at[0] > box[2]:
        anchor, x = "end", box[2]
    return (
        f'{leader}<text class="{look}" x="{x:.1f}" y="{box[3] - 2.5:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}<title>{escape(point.name)}</title></text>"
    )
