"""A run on disk, as Python sees it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.core.errors import DataError, SettingError, nearest
from temper.pipeline.references import BASE
from temper.pipeline.shelf import CACHE, Shelf, read_json

if TYPE_CHECKING:
    from temper.models.model import Model


@dataclass(frozen=True)
class StageResult:
    """One stage of a run."""

    name: str
    kind: str
    key: str
    folder: Path

    @property
    def record(self) -> Mapping[str, Any]:
        """`stage.json`: settings, cost, details, versions; empty for a stage that has not begun."""
        return read_json(self.folder / "stage.json")

    @property
    def is_done(self) -> bool:
        return self.record.get("status") == "done"

    @property
    def suites(self) -> Mapping[str, Mapping[str, Any]]:
        """What was measured, by the suite's label: value, interval, scores, samples, changes."""
        suites: Mapping[str, Mapping[str, Any]] = read_json(self.folder / "measure.json").get("suites", {})
        return suites


class Run:
    """A run's folder.

    Example:
        ```python
        result = temper.Run("runs/mine")
        result.stages["adapt"].suites["lab/reverse"]["value"]
        model = result.model("adapt")
        ```

    Raises:
        DataError: the folder holds no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.record: Mapping[str, Any] = read_json(self.folder / "run.json")
        if not self.record:
            raise DataError(self.folder / "run.json", None, "is not there", "give the folder of a run (runs/<recipe>)")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {', '.join(self)})"

    def __iter__(self) -> Iterator[str]:
        return iter(self.stages)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.record["name"])

    @property
    def stages(self) -> dict[str, StageResult]:
        """Every stage by name, in order; `base` first."""
        return {
            entry["name"]: StageResult(entry["name"], entry["kind"], entry["key"], self.folder / entry["folder"])
            for entry in self.record["stages"]
        }

    @property
    def matrix(self) -> Mapping[str, Any]:
        """Stages against suites: `rows`, `columns`, `values`, average accuracy, backward and forward transfer.

        Empty until the base is measured.
        """
        matrix: Mapping[str, Any] = self.record["matrix"] or {}
        return matrix

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.folder / "report.html"

    def table(self, width: int = 120) -> str:
        """Return the table of gain and loss as text, at most `width` characters wide."""
        from rich.console import Console

        from temper.report import print_table

        console = Console(file=io.StringIO(), width=width)
        with console.capture() as captured:
            print_table(self.folder, console)
        return captured.get()

    @property
    def shelf(self) -> Shelf:
        """The base and the finished stages, for whatever reads models by name."""
        from temper.pipeline.base import Base

        base = Base.model_validate(self.record["recipe"]["base"])
        folders = {name: stage.folder for name, stage in self.stages.items() if name != BASE and stage.is_done}
        return Shelf(base, self.folder.parent / CACHE, int(self.record["recipe"]["seed"]), folders)

    def model(self, stage: str) -> Model:
        """Load the model that a stage made; `base` is the untuned one.

        Raises:
            SettingError: no such stage, or one that has not finished.
        """
        return self.checked(stage).load(stage)

    def checked(self, stage: str) -> Shelf:
        """Return the shelf once it is sure that the stage is on it. Raises SettingError."""
        shelf = self.shelf
        if stage not in (BASE, *shelf.folders):
            reason = "is not finished" if stage in self.stages else f"is no stage of the run {self.name!r}"
            raise SettingError("stage", stage, reason, nearest(stage, [BASE, *shelf.folders]))
        return shelf
