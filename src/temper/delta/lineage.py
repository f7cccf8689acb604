"""From a stage back to whole weights.

A stage's folder holds `model/` (whole weights) or `delta/` (a change to the model it started from, the first of
`models` in its `stage.json`). Walking back gives the folder with whole weights and the changes to add to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from temper.core.errors import ModelError
from temper.delta.base import Delta, read_delta

COMBINATION_FILE = "combination.json"
"""in the folder of a stage whose model is several models, combined while they generate"""


@dataclass(frozen=True)
class Lineage:
    """What a stage's model is made of: `root + deltas`."""

    root: Path | None
    """folder of whole weights; None for the recipe's base"""
    deltas: tuple[tuple[str, Delta], ...]
    """stage and its change, first one first"""
    whole: str
    """the stage whose folder is the root; `base` for the recipe's base"""


def trace(stage: str, artifact: Callable[[str], Path | None]) -> Lineage:
    """Walk from a stage back to whole weights.

    Args:
        stage: its name, or `base`.
        artifact: gives a stage's folder, None for the base.

    Raises:
        ModelError: a folder that holds no model.
    """
    deltas: list[tuple[str, Delta]] = []
    while (folder := artifact(stage)) is not None:
        if (folder / "model").is_dir():
            return Lineage(folder / "model", tuple(reversed(deltas)), stage)
        if (folder / COMBINATION_FILE).is_file():
            raise ModelError(
                f"{folder}: stage {stage!r} is a combination of models, which has no weights of its own; "
                "name one of the models that it is made of"
            )
        if not (folder / "delta").is_dir():
            raise ModelError(f"{folder}: holds neither model/ nor delta/; stage {stage!r} made no model")
        deltas.append((stage, read_delta(folder / "delta")))
        stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["models"][0]
    return Lineage(None, tuple(reversed(deltas)), stage)
