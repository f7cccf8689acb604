"""Where the stages of a run lie, and how a model comes back from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper.core.errors import ModelError
from temper.core.hashing import hash_file, hash_json
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split
from temper.data.sources.stage import DATA_FILE, StageData
from temper.decode.base import Decode
from temper.delta.base import PROVENANCE_FILE
from temper.delta.lineage import COMBINATION_FILE, trace
from temper.engine.distributed import World
from temper.models.load import fingerprint_module, load_model
from temper.models.model import HEAD, Model
from temper.pipeline.base import Base
from temper.pipeline.references import BASE
from temper.signals.setup import is_outside

CACHE = ".cache"
"""folder beside the runs: lab bases and prepared data, made again when deleted"""
RESULTS = ("delta", "model", HEAD, DATA_FILE)
"""what later stages may read of a stage"""


@dataclass
class Shelf:
    """The base and the stages that stand."""

    base: Base
    cache: Path
    seed: int = 0
    folders: dict[str, Path] = field(default_factory=dict)
    """by the stage's name"""

    def load(self, stage: str) -> Model:
        """Load a stage's model (`base`: the recipe's), or one from elsewhere, fresh and with nothing attached.

        Raises:
            ModelError: the stage made no model, or its folder is damaged.
        """
        if is_outside(stage):
            return Base(path=stage).open(self.cache, self.seed)
        folder = self.artifact(stage)
        if folder is not None and (folder / COMBINATION_FILE).is_file():
            return self._combination(folder)
        line = trace(stage, self.artifact)
        model = self.base.open(self.cache, self.seed) if line.root is None else load_model(line.root)
        for _, delta in line.deltas:
            delta.apply(model, keep=False)
        if line.deltas:
            model.folder, model.fingerprint = None, fingerprint_module(model.module, model.tokenizer, model.prompts)
            model.is_changed = False
        if folder is not None and (folder / HEAD).is_dir():
            model.head = folder / HEAD
        return model

    def _combination(self, folder: Path) -> Model:
        names = read_json(folder / "stage.json")["models"]
        note = read_json(folder / COMBINATION_FILE)
        models = {name: self.load(name) for name in names}
        return Decode.parse(note["method"]).join([models[names[number]] for number in note["of"]])

    def artifact(self, stage: str) -> Path | None:
        """Return a stage's folder, None for the base."""
        return None if stage == BASE else self.folders[stage]

    def bind(self, source: Source) -> Source:
        """Tell a source that is a stage's data where that stage lies."""
        if isinstance(source, StageData):
            return source.model_copy(update={"folder": self.folders[source.stage]})
        return source


@dataclass
class RunContext:
    """What the pipeline gives to a running stage: `temper.stages.base.Context`."""

    name: str
    folder: Path
    cache: Path
    shelf: Shelf
    seed: int
    on_bad_rows: OnBadRows
    tell: Callable[[str], None]
    world: World = field(default_factory=World)

    def load(self, stage: str) -> Model:
        with self.world.main_first():  # which makes what is not there yet
            return self.shelf.load(stage)

    def artifact(self, stage: str) -> Path | None:
        return self.shelf.artifact(stage)

    def say(self, text: str) -> None:
        self.tell(f"{self.name}: {text}")

    def open(self, source: Source, split: Split = "train") -> Rows:
        with self.world.main_first():
            return source.open(split, self.cache, self.on_bad_rows)


def fingerprint_results(folder: Path, inputs: Sequence[str]) -> str:
    """Name what a stage left for others by content, on top of what it read; provenance does not count."""
    files = [file for result in RESULTS for file in sorted((folder / result).rglob("*")) if file.is_file()]
    files = [file for file in files if file.name != PROVENANCE_FILE]
    files += [folder / name for name in (DATA_FILE, COMBINATION_FILE) if (folder / name).is_file()]
    return hash_json([list(inputs), [[file.relative_to(folder).as_posix(), hash_file(file)] for file in files]])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON ({error}); remove its folder, and the stage is made again") from error
    return value if isinstance(value, dict) else {}
