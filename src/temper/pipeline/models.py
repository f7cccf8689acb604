"""A model by whatever names it: a lab base, a folder, a hub id, or a stage of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from temper.core.errors import SettingError
from temper.core.methods import Settings
from temper.data.rows import Rows
from temper.data.source import Source, Split
from temper.delta.lineage import COMBINATION_FILE
from temper.models.families import FamilyLayout
from temper.models.model import Model
from temper.pipeline.base import Base
from temper.pipeline.explain import validate
from temper.pipeline.references import BASE
from temper.pipeline.result import Run
from temper.pipeline.shelf import CACHE, read_json

RUNS = Path("runs")


def load_model(
    source: str | Path,
    stage: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: str | Literal[False] = False,
    dtype: str = "auto",
    layout: FamilyLayout | None = None,
) -> Model:
    """Load a model.

    Args:
        source: a model's folder, a hub id, `lab:NAME`, a run's folder, or the folder of a stage in it.
        stage: a stage of the run, or `base`; by default the last that is finished. Only for runs.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: the exact name of the repository whose own code may run.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        layout: where the parts of a model of an unknown family are.

    Raises:
        ModelError: no such model. SettingError: no such stage, or settings that have no effect.

    Example:
        ```python
        model = temper.load_model("lab:tiny")
        tuned = temper.load_model("runs/mine", "adapt")
        ```
    """
    folder = Path(source)
    entry = read_json(folder / "stage.json")
    if entry and (folder.parent / "run.json").is_file() and stage is None:
        run = Run(folder.parent)
        named = [name for name, result in run.stages.items() if result.folder.name == folder.name]
        if named:
            return run.model(named[0])
    if (folder / "run.json").is_file():
        run = Run(folder)
        return run.model(stage or last_model(run))
    if stage is not None:
        raise SettingError("stage", stage, f"needs the folder of a run, and {str(source)!r} is none", "leave it out")
    written = {
        "path": str(source),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "layout": layout,
    }
    return validate(Base, written).open(RUNS / CACHE)


def last_model(run: Run) -> str:
    """Return the last finished stage of a run that made a model, or `base`."""
    made = [
        name
        for name, stage in run.stages.items()
        if name != BASE
        and stage.is_done
        and any((stage.folder / kind).exists() for kind in ("delta", "model", COMBINATION_FILE))
    ]
    return made[-1] if made else BASE


def open_rows(source: str | Mapping[str, Any], split: Split = "train", *, cache: str | Path | None = None) -> Rows:
    """Open a source as it is written in a recipe: `lab/reverse`, `train.jsonl`, `{"lab": {"skill": "copy"}}`.

    Raises:
        DataError: no such file, or a bad row.
    """
    place = RUNS / CACHE if cache is None else Path(cache)
    place.mkdir(parents=True, exist_ok=True)
    return validate(_Asked, {"source": source}).source.open(split, place)


class _Asked(Settings):
    source: Source
