"""Small charts as SVG text: lines over steps, and values with their intervals.

Decisions: one size for all (300 wide, scaled by the page), so that text is equally legible on a phone, a screen and
paper; colours come from the page's CSS classes, so that light and dark need no second drawing; thousands of points
are reduced by the least and greatest of each bucket, so that a spike is never lost; numbers that are not finite are
marked on the upper edge instead of being left out silently. Coordinates carry two decimals: the page reads values
back from them when the reader points at a line.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from markupsafe import Markup

from temper.report import format as fmt

WIDTH, HEIGHT = 300, 184
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22
MAX_POINTS = 400
MAX_MARKS = 40
LARGEST = 1e100
"""numbers beyond it are marked like those that are not finite"""
LOG_RATIO = 100.0
"""a scale is logarithmic when its positive values span more than this"""
ROW = 19
LABELS, VALUES = 104, 46


@dataclass(frozen=True)
class Line:
    """A curve; `y` holds None where there is no number."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    look: Literal["raw", "smooth", "checked"]
    """thin, bold, or bold with a dot at every point"""


@dataclass(frozen=True)
class Mark:
    """A value with its interval, as a row of an interval chart."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, about: int = 4) -> list[float]:
        if self.is_log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / (about + 1)))
            return [10.0**power for power in range(first, last + 1, every)]
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(rough: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _is_drawn(value: float | None) -> bool:
    return value is not None and abs(value) <= LARGEST


def _finite(values: Sequence[float | None]) -> list[float]:
    """Return the numbers that can be drawn; what is nearer to zero than a picture can tell is zero."""
    return [0.0 if abs(value) < 1 / LARGEST else value for value in values if value is not None and _is_drawn(value)]


def fit_scale(values: Sequence[float], start: float, end: float, *, is_log: bool = False, pad: float = 0.05) -> Scale:
    """Return the scale from values to pixels, with a little room at both ends; values of a logarithmic one are
    positive."""
    low, high = min(values), max(values)
    if is_log:
        spread = (high / low) ** pad
        return Scale(low / spread, high * spread, start, end, True)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (-1.0, 1.0)
        return Scale(low, high, start, end)
    spread = pad * (high - low)
    bottom = low - spread
    return Scale(0.0 if low >= 0 and bottom < 0 else bottom, high + spread, start, end)


def tick_text(value: float, step: float) -> str:
    """Return a tick's label with as many digits as its step needs."""
    size = abs(value)
    if size < 1e-12 * max(1.0, step) or value == 0:
        return "0"
    if size >= 1e6 or (step < 1e-3 and size < 1):
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    elif step >= 1000:
        text = f"{value / 1000:g}k"
    else:
        text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return text.replace("-", "\u2212")


def smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """Return the running median over a window centred at each value and cut off at the ends.

    Unlike an exponential average it has no lag and a spike leaves no tail. Numbers that are not finite count nothing.
    """
    half, inside, medians = window // 2, list[float](), list[float | None]()
    known = [value if _is_drawn(value) else None for value in values]
    padded = [*known, *[None] * half]
    for at in range(-half, len(values)):
        entering = padded[at + half] if known else None
        if entering is not None:
            insort(inside, entering)
        leaving = known[at - half - 1] if at > half else None
        if leaving is not None:
            inside.pop(bisect_left(inside, leaving))
        if at >= 0:
            middle = len(inside) // 2
            medians.append(None if known[at] is None else inside[middle] / 2 + inside[-middle - 1] / 2)
    return medians


def thin_out(x: Sequence[float], y: Sequence[float | None]) -> list[tuple[float, float | None]]:
    """Return at most `MAX_POINTS` points: the least and the greatest of each bucket, in order, ends kept."""
    points = list(zip(x, y, strict=True))
    if len(points) <= MAX_POINTS:
        return points
    num_buckets = MAX_POINTS // 2 - 1
    kept: list[tuple[float, float | None]] = [points[0]]
    inner = points[1:-1]
    for bucket in range(num_buckets):
        part = inner[bucket * len(inner) // num_buckets : (bucket + 1) * len(inner) // num_buckets]
        finite = [(value, at) for at, value in part if value is not None and _is_drawn(value)]
        if not finite:
            kept.append((part[0][0], None))
            continue
        kept += sorted({(at, value) for value, at in (min(finite), max(finite))})
    return [*kept, points[-1]]


def line_chart(
    title: str, lines: Sequence[Line], *, x_name: str = "step", description: str = "", may_be_log: bool = True
) -> Markup:
    """Return curves over steps as SVG; a short note where there is nothing to draw.

    Args:
        title: names the chart for those who cannot see it.
        lines: the first one's numbers that are not finite are marked.
        x_name: what the steps are.
        description: the chart in a sentence.
        may_be_log: the scale is logarithmic where the values span much.
    """
    values = [value for line in lines for value in _finite(line.y)]
    steps = [at for line in lines for at in line.x]
    if not values:
        return Markup('<p class="empty">no finite numbers</p>')
    positive = [value for value in values if value > 0]
    is_log = may_be_log and len(positive) == len(values) and max(values) / min(values) > LOG_RATIO
    first, last = (min(steps), max(steps)) if min(steps) < max(steps) else (steps[0] - 1, steps[0] + 1)
    across = Scale(first, last, LEFT, WIDTH - RIGHT)
    up = fit_scale(values, HEIGHT - BOTTOM, TOP, is_log=is_log)
    parts = [_axes(across, up, x_name)]
    for line in lines:
        parts.append(_curve(line, across, up))
    broken = [
        at for line in lines[:1] for at, y in zip(line.x, line.y, strict=True) if y is not None and not _is_drawn(y)
    ]
    for at in broken[:MAX_MARKS]:
        place = across(at)
        parts.append(
            f'<path class="broken" d="M{place - 3:.1f} {TOP - 5}l6 6m0 -6l-6 6">'
            f"<title>{escape(x_name)} {at:g}: not finite</title></path>"
        )
    note = f" {fmt.plural(len(broken), 'number is', 'numbers are')} not finite." if broken else ""
    domain = f"{across.low:.8g} {across.high:.8g} {up.low:.8g} {up.high:.8g}"
    frame = f"{LEFT} {WIDTH - RIGHT} {HEIGHT - BOTTOM} {TOP}"
    return Markup(
        f'<svg class="chart lines" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
        f'{escape(title + ". " + description + note, quote=True)}" data-domain="{domain}" data-frame="{frame}" '
        f'data-log="{int(is_log)}" data-x="{escape(x_name, quote=True)}">' + "".join(parts) + "</svg>"
    )


def _axes(across: Scale, up: Scale, x_name: str) -> str:
    parts = []
    ticks = up.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else up.high - up.low
    for tick in ticks:
        at = up(tick)
        text = tick_text(tick, tick if up.is_log else step)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>')
    if up.is_log:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{TOP + 8}" text-anchor="end">log scale</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>')
    ticks = [tick for tick in across.ticks(3) if tick == round(tick)]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1
    for index, tick in enumerate(ticks):
        at = across(tick)
        is_last = index == len(ticks) - 1
        anchor = "end" if at > WIDTH - RIGHT - 24 else "middle"
        name = f"{x_name} " if is_last else ""
        parts.append(f'<path class="axis" d="M{at:.1f} {base}v3"/>')
        parts.append(
            f'<text x="{at if anchor == "middle" else WIDTH - RIGHT:.1f}" y="{base + 15}" text-anchor="{anchor}">'
            f"{escape(name)}{tick_text(tick, step)}</text>"
        )
    return "".join(parts)


def _curve(line: Line, across: Scale, up: Scale) -> str:
    """Draw runs of finite points as one path, and single points as dots."""
    runs: list[list[tuple[float, float]]] = [[]]
    present = [(at, y) for at, y in zip(line.x, line.y, strict=True) if y is not None]
    for at, value in thin_out([at for at, _ in present], [y for _, y in present]):
        if value is not None and _is_drawn(value):
            runs[-1].append((across(at), up(value)))
        elif runs[-1]:
            runs.append([])
    path = "".join(
        "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in run) + ("h0" if len(run) == 1 else "") for run in runs if run
    )
    dots = ""
    if line.look == "checked" and len(present) <= 60:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for run in runs for x, y in run)
    return f'<g class="{line.look}"><path data-name="{escape(line.name, quote=True)}" d="{path}"/>{dots}</g>'


def interval_chart(
    title: str, marks: Sequence[Mark], unit: str, *, reference: float | None = None, description: str = ""
) -> Markup:
    """Return one row for each model: its value, its interval, and a line at the reference's value."""
    values = _finite([number for mark in marks for number in (mark.value, mark.low, mark.high)])
    values += _finite([reference])
    if not values:
        return Markup('<p class="empty">no finite numbers</p>')
    is_log = unit == "perplexity" and min(values) > 0 and max(values) / min(values) > 20
    start, end = LABELS, WIDTH - VALUES
    across = fit_scale(values, start + 5, end - 5, is_log=is_log)
    bottom = ROW * len(marks) + 6
    parts = []
    ticks = across.ticks(3)
    factor = 100 if unit == "share" else 1
    step = (ticks[1] - ticks[0] if len(ticks) > 1 else across.high - across.low) * factor
    for tick in ticks:
        at = across(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} 2V{bottom}"/>')
        text = tick_text(tick * factor, tick * factor if is_log else step)
        parts.append(f'<text x="{at:.1f}" y="{bottom + 13}" text-anchor="middle">{text}</text>')
    if reference is not None and _is_drawn(reference):
        parts.append(f'<path class="baseline" d="M{across(reference):.1f} 2V{bottom}"/>')
    for index, mark in enumerate(marks):
        parts.append(_interval_row(mark, 4 + ROW * index + ROW / 2, across, unit))
    height = bottom + 18
    return Markup(
        f'<svg class="chart intervals" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title + ". " + description, quote=True)}">' + "".join(parts) + "</svg>"
    )


def _interval_row(mark: Mark, y: float, across: Scale, unit: str) -> str:
    label = fitted(mark.label, LABELS - 6, 10.5)
    parts = [
        f'<text class="name" x="{LABELS - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(label)}'
        f"<title>{escape(mark.label)}</title></text>"
    ]
    bounds = [_finite([bound]) for bound in (mark.low, mark.high)]
    if mark.value is not None and _is_drawn(mark.value):
        if bounds[0] and bounds[1]:
            parts.append(f'<path class="whisker" d="M{across(bounds[0][0]):.1f} {y:.1f}H{across(bounds[1][0]):.1f}"/>')
        parts.append(f'<circle cx="{across(mark.value):.1f}" cy="{y:.1f}" r="3.4"/>')
    text = fmt.number(mark.value, unit)
    parts.append(f'<text x="{WIDTH}" y="{y + 3.5:.1f}" text-anchor="end">{text if len(text) < 9 else "n/a"}</text>')
    return f'<g class="value-row {escape(mark.verdict, quote=True)}">{"".join(parts)}</g>'


def text_width(text: str, size: float) -> float:
    """Return roughly how wide a text is in a sans-serif font of this size, in pixels; wide scripts count double."""
    from unicodedata import combining, east_asian_width

    ems = 0.0
    for letter in text:
        if combining(letter):
            continue
        wide = east_asian_width(letter) in "WF"
        ems += 1.05 if wide else 0.3 if letter in "il.,:;'|!()[]{} tfjI/" else 0.86 if letter in "mwMW@%" else 0.57
    return ems * size


def fitted(text: str, width: float, size: float) -> str:
    """Return as much of a text as fits, with an ellipsis in its middle where something was left out."""
    if text_width(text, size) <= width:
        return text
    head, tail = (len(text) + 1) // 2, len(text) // 2
    while head + tail > 2 and text_width(text[:head] + "…" + text[len(text) - tail :], size) > width:
        head, tail = (head - 1, tail) if head > tail else (head, tail - 1)
    return text[:head] + "…" + text[len(text) - tail :]
