"""Which parts of a model a tuner acts on: patterns in its settings, parts of the anatomy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from temper.core.errors import SettingError, nearest
from temper.models.anatomy import Part
from temper.models.model import Model

EVERY_PART = ("q", "k", "v", "o", "gate", "up", "down")
"""every part of the widest block; a family without a gate has the rest"""
DESCRIPTION = "parts by name (q, k, v, o, gate, up, down), by block (3.q, 0.*) or by module path (*.layers.3.*)"


def matches(part: Part, pattern: str) -> bool:
    """Whether a pattern means a part."""
    return pattern == part.name or fnmatch(f"{part.block}.{part.name}", pattern) or fnmatch(part.path, pattern)


def check_patterns(parts: Sequence[Part], patterns: Iterable[str], key: str) -> None:
    """Raise SettingError where a pattern means no part."""
    for pattern in patterns:
        if not any(matches(part, pattern) for part in parts):
            families = {part.name for part in parts}
            raise SettingError(key, pattern, "matches no part of this model", nearest(pattern, families))


def select_parts(model: Model, patterns: Sequence[str], key: str) -> list[Part]:
    """Return the parts that patterns mean, in the model's order.

    Raises:
        SettingError: a pattern, or all of them together, mean no part; `key` names the setting.
    """
    parts = list(model.anatomy.parts())
    if tuple(patterns) != EVERY_PART:
        check_patterns(parts, patterns, key)
    selected = [part for part in parts if any(matches(part, pattern) for pattern in patterns)]
    if not selected:
        paths = ", ".join(sorted({part.path for part in parts})[:3])
        fix = f"name parts that it has, for instance {paths}" if paths else "it has no linear parts"
        raise SettingError(key, list(patterns), "matches no part of this model", fix)
    return selected
