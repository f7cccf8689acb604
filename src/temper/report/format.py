"""Numbers and words as a reader sees them, on the page and in the terminal.

Decisions: shares are percentages and their changes percentage points; a minus is U+2212; what is missing is an
en dash, never a zero; a number that rounds to nothing has no sign.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

MISSING = "–"  # noqa: RUF001
_MINUS = "\u2212"
_DIGITS = {"share": 1, "nats per token": 3, "perplexity": 2}


def _plain(text: str, signed: bool) -> str:
    """Put the sign of a formatted number in its typographic form."""
    negative, digits = text.startswith("-"), text.lstrip("-")
    if not any(digit in digits for digit in "123456789") and "inf" not in digits:
        return digits
    return (_MINUS if negative else "+" if signed else "") + digits


def number(value: float | None, unit: str = "number", *, signed: bool = False) -> str:
    """Return a suite's value, or a change of it, in its unit: `94.2` for a share of 0.942."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return (_MINUS if value < 0 else "+" if signed else "") + "∞"
    scaled = 100 * value if unit == "share" else value
    digits = _DIGITS.get(unit)
    if digits is None:
        return _plain(_significant(scaled), signed)
    if abs(scaled) >= 1e6:
        return _plain(f"{scaled:.3g}", signed)
    if abs(scaled) >= 1000:
        digits = 0
    return _plain(f"{scaled:,.{digits}f}", signed)


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def interval(low: float | None, high: float | None, unit: str, *, signed: bool = False) -> str:
    """Return `90.1 to 95.7`, or nothing where there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"{number(low, unit, signed=signed)} to {number(high, unit, signed=signed)}"


def scale_of(unit: str) -> str:
    """Return what a value is counted in: `%` for shares."""
    return {"share": "%", "number": ""}.get(unit, unit)


def count(value: float | None) -> str:
    """Return a count with separators: `1,234,567`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return _plain(f"{value:,.0f}", signed=False)


def flops(value: float | None) -> str:
    """Return floating-point operations with their prefix: `3.21 TFLOP`."""
    return MISSING if value is None or not math.isfinite(value) else _prefixed(value, 1000, "KMGTPEZY", "FLOP")


def size(value: float | None) -> str:
    """Return bytes with their prefix: `1.21 GiB`."""
    return MISSING if value is None or not math.isfinite(value) else _prefixed(value, 1024, "KMGTPE", "B", "i")


def _prefixed(value: float, step: int, prefixes: str, unit: str, mark: str = "") -> str:
    scaled, prefix = value, ""
    for letter in prefixes:
        if abs(scaled) < step:
            break
        scaled, prefix = scaled / step, letter + mark
    return f"{scaled:.3g} {prefix}{unit}" if abs(scaled) < 1000 else f"{scaled:,.0f} {prefix}{unit}"


def duration(seconds: float | None) -> str:
    """Return a length of time in its two largest units: `3 min 12 s`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, rest_unit, rest_length in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // rest_length
            return f"{whole // length} {unit}" + (f" {rest} {rest_unit}" if rest else "")
    return f"{whole} s"


def share(part: float | None, whole: float | None) -> str:
    """Return a part of a whole as a percentage: `1.4 %`."""
    if part is None or not whole:
        return MISSING
    percent = 100 * part / whole
    return f"{percent:.3g} %" if percent < 10 else f"{percent:.1f} %"


def moment(text: str | None) -> str:
    """Return an ISO time as `12 November 2025, 14:03 UTC`; text that is no time stays as it is."""
    if not text:
        return ""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time.day} {time:%B %Y, %H:%M}{zone}"


def words(items: list[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def plural(amount: int, word: str, words: str | None = None) -> str:
    """Return `1 stage`, `2 stages`."""
    return f"{amount:,} {word if amount == 1 else words or word + 's'}"


def clip(text: str, length: int) -> str:
    """Return a text of at most about `length` characters that says how much was left out."""
    if len(text) <= length:
        return text
    return f"{text[:length].rstrip()} … ({plural(len(text) - length, 'more character')})"


def method(written: object, num_settings: int = 3) -> str:
    """Return a method as written in a recipe in a few words: `lora (rank 8, alpha 16)`."""
    if isinstance(written, Mapping) and len(written) == 1:
        name, settings = next(iter(written.items()))
        shown = _few(settings, num_settings)
        return f"{name} ({shown})" if shown else str(name)
    return _value(written)


def _few(settings: object, num_settings: int) -> str:
    if not isinstance(settings, Mapping):
        return "" if settings is None else _value(settings)
    pairs = [(key, _value(value)) for key, value in settings.items() if value not in (None, False, [], {}, "")]
    short = [f"{str(key).replace('_', ' ')} {value}" for key, value in pairs if len(value) <= 32]
    return ", ".join(short[:num_settings])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return method(value, 2) if len(value) == 1 else _few(value, 2)
    if isinstance(value, list | tuple):
        return "+".join(_value(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
